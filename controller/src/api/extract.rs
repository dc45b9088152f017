//! Reading requests: bodies with bounds and without unknown fields, parameters, pages. What
//! cannot be read is answered as a problem like everything else.

use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    http::{header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::{IntoParams, ToSchema};

use super::Error;

/// The longest JSON body, in bytes. The largest thing in one is user data.
pub(super) const MAX_BODY: usize = 1 << 20;

/// How deep a JSON body may be nested. Ours are three deep.
const MAX_DEPTH: usize = 16;

/// A JSON body.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let kind =
            request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if kind.split(';').next().is_none_or(|kind| !kind.trim().eq_ignore_ascii_case("application/json")) {
            return Err(Error::media_type("send the body as application/json"));
        }
        let bytes = bytes::Bytes::from_request(request, state).await.map_err(|rejection| {
            match rejection.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
                true => too_long(),
                false => Error::malformed(rejection.body_text()),
            }
        })?;
        if depth(&bytes) > MAX_DEPTH {
            return Err(Error::malformed(format!("the body is nested deeper than {MAX_DEPTH} levels")));
        }
        // Fields in their order, without names, would be taken too.
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            return Err(Error::invalid("/", "the body is an object: {\"name\": …}"));
        }
        parsed(&bytes).map(Self)
    }
}

fn parsed<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    let mut text = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut text).map_err(|error| match error.inner().classify() {
        serde_json::error::Category::Data => Error::invalid(&pointer(error.path()), error.inner()),
        _ => Error::malformed(error.inner()),
    })?;
    text.end().map_err(Error::malformed)?;
    Ok(value)
}

/// Where that is in the body, as a JSON pointer (RFC 6901); the body itself is `/`.
fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Map { key } => pointer += &format!("/{}", key.replace('~', "~0").replace('/', "~1")),
            Segment::Seq { index } => pointer += &format!("/{index}"),
            // A variant has no place of its own in JSON.
            Segment::Enum { .. } => (),
            Segment::Unknown => break,
        }
    }
    if pointer.is_empty() { "/".to_owned() } else { pointer }
}

/// A JSON body has more than [`MAX_BODY`] bytes.
pub(super) fn too_long() -> Error {
    Error::too_large(format!("a JSON body may have {MAX_BODY} bytes"))
}

/// How deep brackets are nested, outside of strings.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut string, mut escaped) = (0usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if string => escaped = true,
            b'"' => string = !string,
            b'[' | b'{' if !string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !string => depth = depth.saturating_sub(1),
            _ => (),
        }
    }
    deepest
}

/// `If-Match` (RFC 9110, 13.1.1): the version of a thing as its reader knew it; none when any will do.
pub(super) struct Expected(Option<Vec<String>>);

impl Expected {
    /// Fails unless the thing is as its reader knew it.
    pub(super) fn check(&self, version: u64) -> Result<(), Error> {
        let now = etag(version);
        match &self.0 {
            Some(tags) if !tags.iter().any(|tag| *tag == now || tag == "*") => {
                Err(Error::precondition(format!("it was changed since you read it and is {now} now: read it again")))
            }
            _ => Ok(()),
        }
    }

    /// The versions that will do; none when any will.
    pub(super) fn versions(self) -> Option<Vec<u64>> {
        let tags = self.0.filter(|tags| !tags.iter().any(|tag| tag == "*"))?;
        // A tag that is none of ours is no version's.
        Some(tags.iter().filter_map(|tag| tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()).collect())
    }
}

/// The entity tag of a thing's version.
fn etag(version: u64) -> String {
    format!("\"{version}\"")
}

/// A thing with the entity tag of its version.
pub(super) fn tagged<T: Serialize>(version: u64, view: T) -> impl IntoResponse + use<T> {
    ([(header::ETAG, etag(version))], axum::Json(view))
}

impl<S: Send + Sync> FromRequestParts<S> for Expected {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let mut tags = Vec::new();
        for value in parts.headers.get_all(header::IF_MATCH) {
            let text = value.to_str().map_err(|_| Error::malformed("If-Match is not text"))?;
            tags.extend(text.split(',').map(|tag| tag.trim().to_owned()));
        }
        Ok(Self(Some(tags).filter(|tags| !tags.is_empty())))
    }
}

/// Parameters of the query.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(query) => Ok(Self(query.0)),
            Err(rejection) => Err(Error::malformed(rejection.body_text())),
        }
    }
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Window {
    /// `next` of the page before; absent for the first page.
    pub(super) after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    pub(super) limit: Option<u32>,
}

impl Window {
    pub(super) fn limit(&self) -> Result<u32, Error> {
        limit(self.limit)
    }
}

/// `limit` within its bounds, 50 when absent.
pub(super) fn limit(limit: Option<u32>) -> Result<u32, Error> {
    match limit.unwrap_or(50) {
        limit @ 1..=200 => Ok(limit),
        _ => Err(Error::invalid("limit", "must be between 1 and 200")),
    }
}

/// A parsed cursor or id, or which parameter was wrong.
pub(super) fn parse<T: std::str::FromStr>(field: &str, text: Option<&str>) -> Result<Option<T>, Error> {
    text.map(|text| text.parse().map_err(|_| Error::invalid(field, format!("`{text}` is not one of ours")))).transpose()
}

/// Whether this can be the name of a rack or image: no id, and nothing to escape in a path.
pub(super) fn check_name(field: &str, name: &str) -> Result<(), Error> {
    if crate::images::is_name(name) {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        "begins with a lower-case letter or digit, continues with those, `.`, `-` or `_`, is at most 63 long and no UUID",
    ))
}

/// Whether this is a line of text of at most so many characters.
pub(super) fn check_text(field: &str, text: &str, most: usize) -> Result<(), Error> {
    if text.chars().count() > most {
        return Err(Error::invalid(field, format!("at most {most} characters")));
    }
    match text.chars().any(char::is_control) {
        true => Err(Error::invalid(field, "one line, without control characters")),
        false => Ok(()),
    }
}

/// A page in another form than JSON: `next` is in the header `Rackhand-Next`.
pub(super) fn text_page(form: &'static str, text: String, next: Option<String>) -> Response {
    let mut response = ([(header::CONTENT_TYPE, form)], text).into_response();
    if let Some(next) = next.and_then(|next| next.parse().ok()) {
        response.headers_mut().insert("rackhand-next", next);
    }
    response
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    /// The things, oldest first.
    pub(super) items: Vec<T>,
    /// Give this as `after` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

impl<T> Page<T> {
    /// Of rows that were asked for with one more than `limit`, to know whether more follow.
    pub(super) fn of<R>(mut rows: Vec<R>, limit: u32, cursor: impl Fn(&R) -> String, view: impl FnMut(R) -> T) -> Self {
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = more.then(|| rows.last().map(cursor)).flatten();
        Self { items: rows.into_iter().map(view).collect(), next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_where_it_is() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "they are only read")]
        struct Inner {
            size: u8,
        }
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "they are only read")]
        struct Outer {
            name: String,
            disks: Vec<Inner>,
        }
        let field = |json: &str| match parsed::<Outer>(json.as_bytes()) {
            Ok(_) => "taken".to_owned(),
            Err(error) => error.detail().to_owned(),
        };
        assert_eq!(field(r#"{"name": "a", "disks": [{"size": 1}]}"#), "taken");
        for (json, told) in [
            (r#"{"name": 1, "disks": []}"#, "/name: invalid type"),
            (r#"{"name": "a", "disks": [{"size": 1}, {"size": 300}]}"#, "/disks/1/size: invalid value"),
            (r#"{"name": "a"}"#, "/: missing field `disks`"),
            (r#"{"name": "a", "disks": [{"a/b~c": 1}]}"#, "/disks/0/a~1b~0c: unknown field"),
            (r#"{"name": "a", "disks": []} x"#, "trailing characters"),
            (r#"{"name": "a", "disks": ["#, "EOF"),
        ] {
            assert!(field(json).starts_with(told), "{}", field(json));
        }
    }

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        assert_eq!(depth(br#"{"a":[1,{"b":"[[[\"[["}]}"#), 3);
        assert_eq!(depth("[".repeat(20_000).as_bytes()), 20_000);
        assert_eq!(depth(b"]]]][1]"), 1);
    }
}
