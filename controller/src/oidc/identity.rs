//! What a provider says of a person, read from its claims (OpenID Connect Core 1.0, section 5).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Config, OidcError};

/// The longest name, as that of everybody else.
const LONGEST_NAME: usize = 63;

/// Somebody a provider vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The provider.
    pub issuer: String,
    /// Its own name for the person, which never becomes another's.
    pub subject: String,
    /// What they are called; only for a first login it has to be a name that can be used here.
    pub name: Option<String>,
    /// Where mail reaches them; empty when it is not told, or not verified.
    pub email: String,
    /// The groups they are in.
    pub groups: BTreeSet<String>,
}

/// Whether these claims have all that is looked for.
pub(super) fn is_complete(config: &Config, claims: &Map<String, Value>) -> bool {
    name(config, claims).is_some() && claims.contains_key(&config.groups_claim)
}

/// The person that claims are about. A name or an address that the provider itself calls unverified
/// is nobody's.
pub(super) fn identity(config: &Config, claims: &Map<String, Value>) -> Result<Identity, OidcError> {
    let text = |claim: &str| claims.get(claim).and_then(Value::as_str).unwrap_or_default().to_owned();
    let is_verified = claims.get("email_verified") != Some(&Value::Bool(false));
    let found = name(config, claims);
    if let Some(("email", address)) = found
        && !is_verified
    {
        return Err(OidcError::Unverified(address.chars().take(254).collect()));
    }
    let email = text("email");
    let is_address = is_verified && email.len() <= 254 && !email.chars().any(char::is_control);
    Ok(Identity {
        issuer: config.issuer.clone(),
        subject: text("sub"),
        name: found.map(|(_, name)| name.to_lowercase()),
        email: if is_address { email } else { String::new() },
        groups: groups(claims.get(&config.groups_claim)),
    })
}

/// The claim that the name is taken from, and what it says.
fn name<'a>(config: &'a Config, claims: &'a Map<String, Value>) -> Option<(&'a str, &'a str)> {
    let usual = ["email", "preferred_username"];
    let wanted = config.name_claim.as_deref().map_or_else(|| usual.to_vec(), |claim| vec![claim]);
    let told = |claim: &'a str| Some((claim, claims.get(claim)?.as_str()?)).filter(|(_, name)| !name.is_empty());
    wanted.into_iter().find_map(told)
}

/// A list of names, or one.
fn groups(claim: Option<&Value>) -> BTreeSet<String> {
    match claim {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(name)) => BTreeSet::from([name.clone()]),
        _ => BTreeSet::new(),
    }
}

/// Whether this can be the name of a person that a provider vouches for: as everybody's, or an
/// address for mail.
pub fn is_name(name: &str) -> bool {
    name.len() <= LONGEST_NAME && crate::images::is_name(&name.replacen('@', "-", 1))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(name_claim: Option<&str>, claims: Value, expected: Expect) {
        let config = Config {
            issuer: "https://login.example.net".into(),
            client_id: "rackhand".into(),
            secret_file: None,
            scopes: Vec::new(),
            name_claim: name_claim.map(str::to_owned),
            groups_claim: "groups".into(),
            roles: Vec::new(),
        };
        let told = match identity(&config, claims.as_object().unwrap()) {
            Ok(Identity { name, email, groups, .. }) => {
                let can = name.as_deref().is_some_and(is_name);
                format!("{} ({can}) <{email}> {groups:?}", name.unwrap_or_default())
            }
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&told);
    }

    #[test]
    fn a_name_is_taken_from_the_claim_that_has_it_and_not_when_it_is_unverified() {
        let ada = json!({"sub": "1", "email": "Ada@example.net", "preferred_username": "ada", "groups": ["noc", 7]});
        check(None, ada.clone(), expect![[r#"ada@example.net (true) <Ada@example.net> {"noc"}"#]]);
        check(Some("preferred_username"), ada, expect![[r#"ada (true) <Ada@example.net> {"noc"}"#]]);
        let unverified = json!({"sub": "1", "email": "ada@example.net", "email_verified": false, "nick": "ada"});
        check(
            None,
            unverified.clone(),
            expect!["the address ada@example.net is not verified at the provider; verify it there, and log in again"],
        );
        check(Some("nick"), unverified, expect![[r#"ada (true) <> {}"#]]);
        check(None, json!({"sub": "1", "groups": "noc"}), expect![[r#" (false) <> {"noc"}"#]]);
        check(None, json!({"sub": "1", "email": "../x@y"}), expect![[r#"../x@y (false) <../x@y> {}"#]]);
    }
}
