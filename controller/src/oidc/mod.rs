//! Logins by OpenID Connect (Core 1.0): a provider vouches for people, by the authorization code
//! flow with PKCE (RFC 7636, S256), nonce and state.
//!
//! Whoever begins a login is given a secret beside the address for the browser, and ends it with
//! that and with what the browser brought back: who only sees the browser's addresses cannot.
//!
//! Invariants:
//! - A login is ended once, within [`LIFE`], by the process it was begun with.
//! - A provider that cannot be reached keeps people from logging in by it, and nothing else.
//!
//! What roles a person has, and whether there is one, is not decided here.

mod config;
mod identity;
mod provider;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context as _, Result};
use openidconnect::{CsrfToken, RedirectUrl};
use rackhand_common::time::Now;
use rackhand_controller_core::access::Pending;
use reqwest::Url;

use self::provider::{Asked, Provider};
pub use self::{
    config::{Config, File, GroupRole, RoleFile, ScopeName},
    identity::{Identity, is_name},
};

/// How long a login may take from its beginning to its end.
pub const LIFE: Duration = Duration::from_secs(600);

/// The longest address to come back to.
const LONGEST_REDIRECT: usize = 200;

/// Why nobody was vouched for.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// There is no `[oidc]`.
    #[error("OpenID Connect is not configured here; log in with name and password")]
    NotConfigured,
    /// The address to come back to is not the caller's own computer.
    #[error("is `http://127.0.0.1:PORT/…` or `http://[::1]:PORT/…`, of at most {LONGEST_REDIRECT} characters")]
    Redirect,
    /// The provider does not answer, or not as one.
    #[error("{0} cannot be reached, or does not answer as an OpenID provider does: {1}")]
    Unreachable(String, String),
    /// Nothing was begun, or it is over.
    #[error(
        "this login is not known: it took longer than {} minutes, was ended before, or the controller was started \
         anew in the meantime; begin again",
        LIFE.as_secs() / 60
    )]
    Unknown,
    /// The browser came back from another login.
    #[error("the state is not that of this login; begin again")]
    State,
    /// The provider does not take the code.
    #[error("{0} did not take the code: {1}; begin again")]
    Code(String, String),
    /// What the provider sent is not its own, not for us, or not of this login.
    #[error("what {0} says of who logs in cannot be believed: {1}")]
    Unbelievable(String, String),
    /// The provider itself does not know that the address is the person's.
    #[error("the address {0} is not verified at the provider; verify it there, and log in again")]
    Unverified(String),
}

/// The provider that vouches for people, when one is configured. Clones are the same.
#[derive(Clone)]
pub struct Oidc(Arc<Inner>);

struct Inner {
    provider: RwLock<Option<Arc<Provider>>>,
    pending: Mutex<Pending<(Arc<Provider>, Asked)>>,
}

/// A login that was begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Where the person's browser goes.
    pub url: Url,
    /// What the login is ended with.
    pub login: String,
}

impl std::fmt::Debug for Oidc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oidc").finish_non_exhaustive()
    }
}

impl Oidc {
    /// The provider that is configured. Reads the client's secret; asks nobody anything.
    pub fn new(config: Option<&Config>) -> Result<Self> {
        let provider = RwLock::new(config.map(provider).transpose()?.map(Arc::new));
        Ok(Self(Arc::new(Inner { provider, pending: Mutex::new(Pending::new(LIFE)) })))
    }

    /// Another configuration from now on; logins that were begun with another provider are over.
    /// What can fail of it fails before anything is changed.
    pub fn take_over(&self, config: Option<&Config>) -> Result<impl FnOnce() + use<'_>> {
        let fresh = config.map(provider).transpose()?;
        Ok(move || {
            let mut used = self.0.provider.write().unwrap_or_else(PoisonError::into_inner);
            let said = |provider: &Provider| (provider.config.clone(), provider.secret.clone());
            if used.as_deref().map(said) != fresh.as_ref().map(said) {
                *used = fresh.map(Arc::new);
            }
        })
    }

    /// The configuration in use.
    pub fn config(&self) -> Option<Config> {
        self.provider().map(|provider| provider.config.clone())
    }

    /// Begins a login of somebody whose browser will come back to `redirect` on their own computer.
    pub async fn begin(&self, now: Now, redirect: &str) -> Result<Begun, OidcError> {
        let provider = self.provider().ok_or(OidcError::NotConfigured)?;
        let redirect = loopback(redirect).ok_or(OidcError::Redirect)?;
        let (url, asked) = provider.ask(now.mono, redirect).await?;
        let login = CsrfToken::new_random_len(32).into_secret();
        self.pending().begin(now.mono, login.clone(), (provider, asked));
        Ok(Begun { url, login })
    }

    /// Ends a login with what the browser came back with.
    pub async fn finish(&self, now: Now, login: &str, state: &str, code: &str) -> Result<Identity, OidcError> {
        let provider = self.provider().ok_or(OidcError::NotConfigured)?;
        let begun = self.pending().take(now.mono, login);
        let (with, asked) = begun.ok_or(OidcError::Unknown)?;
        if !Arc::ptr_eq(&with, &provider) {
            return Err(OidcError::Unknown);
        }
        if asked.state != state {
            return Err(OidcError::State);
        }
        provider.exchange(now.mono, asked, code.to_owned()).await
    }

    fn provider(&self) -> Option<Arc<Provider>> {
        self.0.provider.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending<(Arc<Provider>, Asked)>> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn provider(config: &Config) -> Result<Provider> {
    Provider::new(config.clone(), config.secret()?).context("cannot set up TLS for OpenID Connect")
}

/// An address on the caller's own computer (RFC 8252, section 7.3).
fn loopback(text: &str) -> Option<RedirectUrl> {
    let url = Url::parse(text).ok().filter(|_| text.len() <= LONGEST_REDIRECT)?;
    let host = url.host_str()?.trim_matches(['[', ']']).parse::<IpAddr>().ok()?;
    let plain =
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    let ours = url.scheme() == "http" && host.is_loopback() && url.port().is_some();
    (plain && ours).then(|| RedirectUrl::from_url(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_comes_back_to_its_own_computer_alone() {
        for right in ["http://127.0.0.1:5000/callback", "http://[::1]:5000/"] {
            assert!(loopback(right).is_some(), "{right}");
        }
        let wrong = [
            "http://localhost:5000/",
            "https://127.0.0.1:5000/",
            "http://127.0.0.1/",
            "http://192.0.2.1:5000/",
            "http://a@127.0.0.1:5000/",
            "http://127.0.0.1:5000/?next=http://evil.example",
            "http://127.0.0.1.evil.example:5000/",
            "callback",
        ];
        for wrong in wrong {
            assert!(loopback(wrong).is_none(), "{wrong}");
        }
    }
}
