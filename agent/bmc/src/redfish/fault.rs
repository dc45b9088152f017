//! What a BMC says when it does not do as asked (DSP0266 §"Error responses"), in our words.
//!
//! Invariants:
//! - A secret that was sent does not come back in a message, whatever the BMC echoes.
//! - Every error of this module's siblings is made here, so that its words are fit to print
//!   ([`text`]) whatever they repeat; a test reads the sources for it.

use std::fmt::Display;

use reqwest::StatusCode;
use serde_json::Value;

use crate::{bmc::BmcError, told::text};

use super::{link::Link, resource::Node};

/// The most messages of one answer that are told.
const MAX_MESSAGES: usize = 4;

/// It does not take this user and password, or the user may not do this.
pub fn denied(words: impl Display) -> BmcError {
    BmcError::Denied(fit(words))
}

/// It said no.
pub fn refused(words: impl Display) -> BmcError {
    BmcError::Refused(fit(words))
}

/// It has no such thing.
pub fn unsupported(words: impl Display) -> BmcError {
    BmcError::Unsupported(fit(words))
}

/// It did not answer, or is busy.
pub fn unreachable(words: impl Display) -> BmcError {
    BmcError::Unreachable(fit(words))
}

/// It answered something that has no meaning.
pub fn malformed(words: impl Display) -> BmcError {
    BmcError::Malformed(fit(words))
}

/// It is not the one that was there before.
pub fn changed(words: impl Display) -> BmcError {
    BmcError::Changed(fit(words))
}

fn fit(words: impl Display) -> String {
    text(&words.to_string()).unwrap_or_default()
}

/// The error that an answer of this status is.
pub fn of_status(status: StatusCode, link: &Link, body: Node<'_>, secrets: &[String]) -> BmcError {
    let words = match words(body, secrets) {
        Some(words) => format!("{link}: {} {words}", status.as_u16()),
        None => format!("{link}: {status}"),
    };
    let words = redacted(&words, secrets);
    match status.as_u16() {
        401 | 403 => denied(words),
        404 | 405 | 410 | 501 => unsupported(words),
        408 | 429 | 500.. => unreachable(words),
        400.. => refused(words),
        _ => malformed(words),
    }
}

/// The error in an answer whose status says that all is well: a message of severity Critical, or
/// an `error` object.
pub fn of_success(link: &Link, body: Node<'_>, secrets: &[String]) -> Option<BmcError> {
    let is_bad = |message: Node<'_>| {
        ["MessageSeverity", "Severity"].iter().any(|name| message.word(name).is_some_and(|word| word == "Critical"))
    };
    // Several BMCs answer a change with an `error` object whose one message is Base.Success.
    let is_error =
        body.at("error").items("@Message.ExtendedInfo").any(is_bad) || body.items("@Message.ExtendedInfo").any(is_bad);
    is_error.then(|| refused(redacted(&format!("{link}: {}", words(body, secrets).unwrap_or_default()), secrets)))
}

/// What its `@Message.ExtendedInfo` says; where that gives names of messages only, what its
/// `error.message` says. Secrets are taken out first: what is cut off in the midst of one is no
/// longer known.
pub fn words(body: Node<'_>, secrets: &[String]) -> Option<String> {
    let error = body.at("error");
    let text_of = |node: Node<'_>, name: &str| node.word(name).and_then(|raw| text(&redacted(raw, secrets)));
    let told = |names: &[&str]| {
        let infos = error.items("@Message.ExtendedInfo").chain(body.items("@Message.ExtendedInfo"));
        let mut words: Vec<String> =
            infos.filter_map(|info| names.iter().find_map(|name| text_of(info, name))).take(MAX_MESSAGES).collect();
        words.dedup();
        words
    };
    let mut messages = told(&["Message"]);
    if messages.is_empty() {
        messages.extend(text_of(error, "message"));
    } else {
        messages = told(&["Message", "MessageId"]);
    }
    if messages.is_empty() {
        messages = told(&["MessageId"]);
    }
    messages.extend(text_of(error, "code").filter(|_| messages.is_empty()));
    text(&messages.join("; "))
}

/// Every password in what is about to be sent.
pub fn secrets(sent: &Value) -> Vec<String> {
    let is_secret = |name: &str| name.to_ascii_lowercase().contains("password");
    match sent {
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| match value {
                Value::String(secret) if is_secret(name) && !secret.is_empty() => vec![secret.clone()],
                value => secrets(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(secrets).collect(),
        _ => Vec::new(),
    }
}

fn redacted(words: &str, secrets: &[String]) -> String {
    secrets
        .iter()
        .filter(|secret| !secret.is_empty())
        .fold(words.to_owned(), |words, secret| words.replace(secret, "[password]"))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(status: u16, body: Value, expected: Expect) {
        let link = Link::parse("/redfish/v1/Systems/1").unwrap();
        let error = of_status(StatusCode::from_u16(status).unwrap(), &link, Node(Some(&body)), &["hunter2".to_owned()]);
        expected.assert_eq(&error.to_string());
    }

    #[test]
    fn messages_are_told_in_words() {
        check(
            400,
            json!({"error": {"code": "Base.1.8.GeneralError", "message": "See ExtendedInfo", "@Message.ExtendedInfo": [
                {"MessageId": "Base.1.8.PropertyValueNotInList", "Message": "The value X for the property Y is not in the list"},
                {"MessageId": "IDRAC.2.1.SYS426"}, null, {"Message": 3}]}}),
            expect![
                "refused: /redfish/v1/Systems/1: 400 The value X for the property Y is not in the list; IDRAC.2.1.SYS426"
            ],
        );
    }

    #[test]
    fn a_status_alone_is_told() {
        check(404, Value::Null, expect!["not supported: /redfish/v1/Systems/1: 404 Not Found"]);
        check(403, json!({"error": "no"}), expect!["denied: /redfish/v1/Systems/1: 403 Forbidden"]);
        check(500, json!([]), expect!["unreachable: /redfish/v1/Systems/1: 500 Internal Server Error"]);
    }

    #[test]
    fn an_echoed_password_is_not_told() {
        check(
            400,
            json!({"error": {"message": "The value hunter2 for the property Password is too short"}}),
            expect!["refused: /redfish/v1/Systems/1: 400 The value [password] for the property Password is too short"],
        );
        assert_eq!(secrets(&json!({"Password": "hunter2", "a": [{"NewPassword": "x"}]})), ["hunter2", "x"]);
    }

    #[test]
    fn a_password_echoed_where_words_are_cut_off_is_not_told() {
        let link = Link::root();
        for message in ["Message", "message"] {
            for before in 200..256 {
                let words = format!("{}hunter2", ".".repeat(before));
                let body = json!({"error": {"message": words, "@Message.ExtendedInfo": [{message: words}]}});
                let error = of_status(StatusCode::BAD_REQUEST, &link, Node(Some(&body)), &["hunter2".to_owned()]);
                assert!(!error.to_string().contains(".h"), "{error}");
            }
        }
    }

    #[test]
    fn every_error_is_made_here() {
        let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/redfish");
        for entry in std::fs::read_dir(sources).unwrap() {
            let path = entry.unwrap().path();
            let source = std::fs::read_to_string(&path).unwrap();
            let code = source.split("#[cfg(test)]").next().unwrap();
            if path.ends_with("fault.rs") {
                continue;
            }
            for made in code.split("BmcError::").skip(1) {
                let (_, rest) = made.split_once('(').unwrap();
                assert!(rest.starts_with("_)"), "{}: BmcError::{}", path.display(), made.lines().next().unwrap());
            }
        }
    }

    #[test]
    fn success_with_a_critical_message_is_refused() {
        let link = Link::root();
        let good = json!({"error": {"@Message.ExtendedInfo": [{"MessageId": "Base.1.0.Success", "Severity": "OK"}]}});
        let bad = json!({"@Message.ExtendedInfo": [{"Message": "Not done", "MessageSeverity": "Critical"}]});
        assert_eq!(of_success(&link, Node(Some(&good)), &[]), None);
        assert_eq!(
            of_success(&link, Node(Some(&bad)), &[]),
            Some(BmcError::Refused("/redfish/v1/: Not done".to_owned()))
        );
    }
}
