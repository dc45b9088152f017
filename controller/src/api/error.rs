//! Answers that are not what was asked for: problem details (RFC 9457), and the only place
//! that knows status codes.

use std::{fmt, time::Duration};

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use rackhand_controller_core::adoption::NoAddress;
use serde::Serialize;
use utoipa::ToSchema;

use super::trace::Trace;
use crate::{
    addresses::Refused, adoptions::NotAdopted, images::ImportError, store::StoreError, succession::NotReplaced,
    verbs::Denied,
};

/// After how long what is not possible at the moment may be.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why a request was not carried out.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    detail: String,
    errors: Vec<Invalid>,
    /// How long to wait before asking again.
    wait: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Malformed,
    Unauthenticated,
    Forbidden,
    NotFound,
    Method,
    Timeout,
    Conflict,
    InProgress,
    AnswerLost,
    Precondition,
    TooLarge,
    TooOften,
    MediaType,
    Invalid,
    TooMany,
    Internal,
    Unavailable,
}

/// A problem, as RFC 9457 has it. `type` is stable and meant for programs; `detail` is meant
/// for people and says what to do.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// Names the kind of problem: `urn:rackhand:problem:` and one of `malformed`,
    /// `unauthenticated`, `forbidden`, `not-found`, `method`, `timeout`, `conflict`, `in-progress`,
    /// `answer-lost`, `precondition-failed`, `too-large`, `too-often`, `media-type`, `invalid`, `internal`, `unavailable`.
    #[serde(rename = "type")]
    #[schema(example = "urn:rackhand:problem:conflict")]
    kind: String,
    /// The kind of problem in words, always the same for one kind.
    #[schema(example = "The present state does not permit this")]
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 409)]
    status: u16,
    /// What was wrong with this request.
    #[schema(example = "cannot deploy a machine that is active; possible now: reinstall, rescue, release, power")]
    detail: String,
    /// Names this request, as `X-Request-Id` does; the controller's log has it too.
    #[schema(example = "urn:uuid:01931b1e-0000-7000-8000-000000000000")]
    instance: String,
    /// The trace it belongs to: that of your `traceparent`, or its own.
    #[schema(example = "4bf92f3577b34da6a3ce929d0e0e4736")]
    trace_id: String,
    /// The fields that were wrong, when the problem is about fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Invalid>,
}

/// A field that was wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Invalid {
    /// Where it stands in the body (JSON pointer, RFC 6901) or which parameter it is.
    #[schema(example = "/ssh_keys/0")]
    pub(super) field: String,
    /// What is wrong with it.
    pub(super) detail: String,
}

impl Error {
    /// The body or a parameter cannot be read.
    pub fn malformed(detail: impl fmt::Display) -> Self {
        Self::new(Kind::Malformed, detail)
    }

    /// Nobody of ours is asking.
    pub fn unauthenticated(detail: impl fmt::Display) -> Self {
        Self::new(Kind::Unauthenticated, detail)
    }

    /// It is known who is asking, and they may not.
    pub fn forbidden(detail: impl fmt::Display) -> Self {
        Self::new(Kind::Forbidden, detail)
    }

    /// There is no such thing.
    pub fn not_found(detail: impl fmt::Display) -> Self {
        Self::new(Kind::NotFound, detail)
    }

    /// The path is right and the method is not.
    pub fn method() -> Self {
        Self::new(Kind::Method, "this path does not know this method")
    }

    /// The request took longer than it may.
    pub fn timeout() -> Self {
        Self::new(Kind::Timeout, "the request was not complete in time")
    }

    /// The present state does not permit it.
    pub fn conflict(detail: impl fmt::Display) -> Self {
        Self::new(Kind::Conflict, detail)
    }

    /// The same request, by its key, is being carried out.
    pub fn in_progress(detail: impl fmt::Display) -> Self {
        Self::new(Kind::InProgress, detail)
    }

    /// The same request, by its key, was carried out, and nobody knows its answer.
    pub fn answer_lost(detail: impl fmt::Display) -> Self {
        Self::new(Kind::AnswerLost, detail)
    }

    /// It is not as the caller said that it was.
    pub fn precondition(detail: impl fmt::Display) -> Self {
        Self::new(Kind::Precondition, detail)
    }

    /// The body is longer than it may be.
    pub fn too_large(detail: impl fmt::Display) -> Self {
        Self::new(Kind::TooLarge, detail)
    }

    /// More requests than may come at once; they may come again after `wait`.
    pub fn too_often(wait: Duration) -> Self {
        let detail = "this token asks more often than this controller lets it; wait as `Retry-After` says, or ask \
            for larger pages (`limit`) or for events instead of polling";
        Self { wait: Some(wait), ..Self::new(Kind::TooOften, detail) }
    }

    /// The body is of another type.
    pub fn media_type(detail: impl fmt::Display) -> Self {
        Self::new(Kind::MediaType, detail)
    }

    /// One field is wrong.
    pub fn invalid(field: &str, detail: impl fmt::Display) -> Self {
        let invalid = Invalid { field: field.into(), detail: detail.to_string() };
        Self { errors: vec![invalid], ..Self::new(Kind::Invalid, format!("{field}: {detail}")) }
    }

    /// What was wrong, for people.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// What to tell somebody who has no answer in HTTP; what failed of ours goes to the log.
    pub(crate) fn words(&self) -> String {
        if self.kind == Kind::Internal {
            tracing::error!(error = %self.detail, "it failed");
            return "the controller failed, and its log says why".into();
        }
        self.detail.clone()
    }

    /// Whether it is the caller who can do something about it.
    pub(super) fn is_callers(&self) -> bool {
        matches!(self.kind, Kind::Invalid | Kind::Conflict | Kind::NotFound)
    }

    /// More of these were tried than may be; one more may be after `wait`.
    pub fn too_many(what: &str, wait: Duration) -> Self {
        let seconds = wait.as_secs() + 1;
        Self::new(Kind::TooMany, format!("too many {what} were tried; try again in {seconds} seconds"))
    }

    /// Something of ours failed; the text goes to the log and not to the caller.
    pub fn internal(error: impl std::error::Error + 'static) -> Self {
        let mut chain = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            chain = format!("{chain}: {error}");
            source = error.source();
        }
        Self::new(Kind::Internal, chain)
    }

    /// Not now.
    pub fn unavailable(detail: impl fmt::Display) -> Self {
        Self::new(Kind::Unavailable, detail)
    }

    fn new(kind: Kind, detail: impl fmt::Display) -> Self {
        Self { kind, detail: detail.to_string(), errors: Vec::new(), wait: None }
    }
}

impl Kind {
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Malformed => (StatusCode::BAD_REQUEST, "malformed", "The request cannot be read"),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated", "A valid token is needed"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "You may not do this"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is no such thing"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "method", "This cannot be done here"),
            Self::Timeout => (StatusCode::REQUEST_TIMEOUT, "timeout", "The request took too long"),
            Self::Conflict => (StatusCode::CONFLICT, "conflict", "The present state does not permit this"),
            Self::InProgress => (StatusCode::CONFLICT, "in-progress", "The same request is being carried out"),
            Self::AnswerLost => (StatusCode::CONFLICT, "answer-lost", "It was carried out, and its answer is lost"),
            Self::Precondition => {
                (StatusCode::PRECONDITION_FAILED, "precondition-failed", "It is not what it was when you read it")
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body is too large"),
            Self::TooOften => (StatusCode::TOO_MANY_REQUESTS, "too-often", "Too many requests"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "The body has an unknown type"),
            Self::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "A field is not acceptable"),
            Self::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too-many", "It was asked too often"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The controller failed"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not possible at the moment"),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, kind, title) = self.kind.parts();
        let trace = Trace::present();
        let instance = format!("urn:uuid:{}", trace.request);
        let detail = if self.kind == Kind::Internal {
            tracing::error!(%instance, error = %self.detail, "request failed");
            "the controller's log has the reason under the name in `instance`".into()
        } else {
            tracing::debug!(%instance, %status, detail = %self.detail, "request refused");
            self.detail
        };
        let problem = Problem {
            kind: format!("urn:rackhand:problem:{kind}"),
            title,
            status: status.as_u16(),
            detail,
            instance,
            trace_id: trace.id(),
            errors: self.errors,
        };
        let body = serde_json::to_vec(&problem).expect("problems always serialize");
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if self.kind == Kind::Unauthenticated {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        let wait = self.wait.or((self.kind == Kind::Unavailable).then_some(RETRY_AFTER));
        if let Some(wait) = wait {
            let seconds = wait.as_millis().div_ceil(1000).max(1) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(what) => Self::not_found(format!("there is no such {what}")),
            StoreError::Taken(_) | StoreError::Changed(_) => Self::conflict(error),
            StoreError::Full(_) | StoreError::Unwritable(_) | StoreError::Unreachable(_) | StoreError::Busy(_) => {
                Self::unavailable(error)
            }
            StoreError::Database(_) | StoreError::Damaged(..) | StoreError::Served(_) | StoreError::OtherKey => {
                Self::internal(error)
            }
        }
    }
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Store(error) => error.into(),
            Denied::HasData(_) => Self::conflict(format!("{denied}; say `accept_data` if it may be lost")),
            Denied::Changed(_) => {
                Self::conflict(format!("{denied}; see both sides in the machine's `changes`, then say `replace-part`"))
            }
            Denied::Elsewhere(_) => Self::conflict(format!(
                "{denied}; `merge` it if it is that machine, or say `accept_parts` if they were moved here"
            )),
            Denied::NoSuchDisk(_) => Self::invalid("/disk", denied),
            Denied::NoUserData | Denied::NotForIgnition(_) => Self::invalid("/user_data", denied),
            Denied::Forbidden(_)
            | Denied::Busy(_)
            | Denied::Destructive(_)
            | Denied::NoBmc(_)
            | Denied::FirmwareNotHere(_)
            | Denied::FirmwareUnfit { .. }
            | Denied::FirmwareTwice(..)
            | Denied::NotInspected(_)
            | Denied::FirmwareAsWanted(_)
            | Denied::NamelessDisk(_)
            | Denied::NoDisk
            | Denied::ImageNotReady(_)
            | Denied::ImageExpired(..)
            | Denied::ImageUnsuitable { .. }
            | Denied::Unchanged
            | Denied::Critical(..)
            | Denied::Unexpected { .. }
            | Denied::NotNew(..)
            | Denied::Same
            | Denied::HasAddresses(_)
            | Denied::Announces(_)
            | Denied::HasAddressesOfOthers(_)
            | Denied::InUse(_)
            | Denied::RunOver
            | Denied::RunDone
            | Denied::Outlived(_)
            | Denied::UserDataForgotten
            | Denied::ImageGone(_)
            | Denied::RackRestored(_) => Self::conflict(denied),
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Store(error) => error.into(),
            Refused::NotStored(error) if error.is_passing() => Self::unavailable(error),
            Refused::NotStored(_) => Self::internal(refused),
            Refused::Changed(_) => Self::precondition(refused),
            Refused::Busy | Refused::Stopping | Refused::Tidying(_) => Self::unavailable(refused),
            Refused::Length(_) | Refused::LargerThanBlock { .. } => Self::invalid("/length", refused),
            Refused::NotItsCard { .. } => Self::invalid("/mac", refused),
            Refused::NotInPool(..) => Self::invalid("/prefix", refused),
            Refused::Family(..) | Refused::NotRouted(..) => Self::invalid("/prefixes", refused),
            Refused::Exhausted { .. }
            | Refused::Held { .. }
            | Refused::Resting(..)
            | Refused::Elsewhere { .. }
            | Refused::OfProject(_)
            | Refused::NoMoreBlocks { .. }
            | Refused::Others(_)
            | Refused::Over(..)
            | Refused::Reserved(_)
            | Refused::AnothersToAnnounce { .. }
            | Refused::InOnePlace { .. }
            | Refused::NoMoreAnnouncements(..)
            | Refused::Overlap(..)
            | Refused::NoAggregate { .. }
            | Refused::NotProven(_)
            | Refused::NoProof(_)
            | Refused::Pooled(..)
            | Refused::AggregateInUse(_)
            | Refused::PoolInUse(_) => Self::conflict(refused),
        }
    }
}

impl From<NotAdopted> for Error {
    fn from(denied: NotAdopted) -> Self {
        match denied {
            NotAdopted::Store(error) => error.into(),
            NotAdopted::Denied(denied) => denied.into(),
            NotAdopted::Refused(refused) => refused.into(),
            NotAdopted::Nameless => Self::invalid("/serial", denied),
            NotAdopted::NoCards => Self::invalid("/macs", denied),
            NotAdopted::Address(NoAddress::NotThere(..)) => Self::invalid("/address", denied),
            NotAdopted::NoBmc(_) => Self::invalid("/bmc", denied),
            NotAdopted::Known { .. }
            | NotAdopted::Differs { .. }
            | NotAdopted::Address(_)
            | NotAdopted::NotMet { .. }
            | NotAdopted::OtherBoard { .. }
            | NotAdopted::Full => Self::conflict(denied),
        }
    }
}

impl From<NotReplaced> for Error {
    fn from(refused: NotReplaced) -> Self {
        match refused {
            NotReplaced::Store(error) => error.into(),
            NotReplaced::Before { .. } => Self::conflict(refused),
        }
    }
}

impl From<ImportError> for Error {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Store(error) => error.into(),
            ImportError::NoFile(_) => Self::invalid("/file", error),
            ImportError::Fetch(_) => Self::invalid("/url", error),
            ImportError::TooLarge { .. } => Self::too_large(error),
            ImportError::Upload(_) => Self::malformed(error),
            ImportError::NotReady => Self::conflict(error),
            ImportError::Stopped => Self::unavailable(error),
            ImportError::Read(_) | ImportError::Compress(_) | ImportError::Objects(_) => Self::internal(error),
            other => Self::invalid("/file", other),
        }
    }
}
