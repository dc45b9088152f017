//! Passwords, and how often they may be tried.
//!
//! Hashes are Argon2id (RFC 9106) with 19 MiB, two passes and one lane, as OWASP's password
//! storage guide has it; a hash carries its parameters, so that others can follow.
//!
//! Invariants:
//! - A wrong password takes as long for a name that there is not.
//! - No more than [`TOGETHER`] are computed at once, however many ask.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher as _, PasswordVerifier as _},
};
use rackhand_common::time::Mono;
use rackhand_controller_core::access::{Attempts, Limit};
use tokio::sync::Semaphore;

/// The shortest password, in characters (NIST SP 800-63B asks for 8, and for 15 without a second factor).
pub const SHORTEST: usize = 12;

/// The longest, in bytes: whoever sends more shall not have it hashed.
pub const LONGEST: usize = 1024;

/// Memory in KiB, passes and lanes.
const PARAMETERS: (u32, u32, u32) = (19 * 1024, 2, 1);

/// So many are computed at once: two cores' worth, and 38 MiB.
const TOGETHER: usize = 2;

/// Tries of one account: who guesses has three thousand a day.
const ACCOUNT: Limit = Limit { burst: 5, refill: Duration::from_secs(30) };

/// Tries of one source, behind which a whole office can be.
const SOURCE: Limit = Limit { burst: 30, refill: Duration::from_secs(5) };

/// Checks passwords. Clones share the limits.
#[derive(Clone, Debug)]
pub struct Passwords {
    tries: Arc<Mutex<(Attempts, Attempts)>>,
    places: Arc<Semaphore>,
    /// Of a password nobody has.
    nobody: Arc<str>,
}

impl Default for Passwords {
    fn default() -> Self {
        let mut password = [0u8; 32];
        rand::fill(&mut password);
        Self {
            tries: Arc::new(Mutex::new((Attempts::new(ACCOUNT), Attempts::new(SOURCE)))),
            places: Arc::new(Semaphore::new(TOGETHER)),
            nobody: hash(&password).into(),
        }
    }
}

impl Passwords {
    /// Takes a try of this account from this source; `Err` says how long there is none.
    pub fn may_try(&self, now: Mono, account: &str, source: Option<IpAddr>) -> Result<(), Duration> {
        let mut tries = self.tries();
        let (accounts, sources) = &mut *tries;
        if let Some(source) = source {
            sources.take(now, &network(source))?;
        }
        accounts.take(now, account)
    }

    /// Takes a try of this source alone, where it shows only later whose login it is.
    pub fn may_ask(&self, now: Mono, source: Option<IpAddr>) -> Result<(), Duration> {
        source.map_or(Ok(()), |source| self.tries().1.take(now, &network(source)))
    }

    /// It was the right one: the account's tries are all there again.
    pub fn was_right(&self, account: &str) {
        self.tries().0.forget(account);
    }

    /// The hash to keep of a password.
    pub async fn hash(&self, password: &str) -> String {
        let password = password.to_owned();
        self.compute(move || hash(password.as_bytes())).await
    }

    /// Whether it is the password with this hash; with none it takes as long, and is not.
    pub async fn verify(&self, password: &str, kept: Option<&str>) -> bool {
        let (password, is_known) = (password.to_owned(), kept.is_some());
        let kept = kept.unwrap_or(&self.nobody).to_owned();
        is_known & self.compute(move || argon2().verify_password(password.as_bytes(), kept.as_str()).is_ok()).await
    }

    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let _place = self.places.acquire().await.expect("it is never closed");
        tokio::task::spawn_blocking(work).await.expect("hashing does not panic")
    }

    fn tries(&self) -> MutexGuard<'_, (Attempts, Attempts)> {
        self.tries.lock().expect("nothing panics while it is held")
    }
}

/// What counts as one source: an address, of IPv6 the network that a customer has.
fn network(source: IpAddr) -> String {
    match source.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{:x?}", &address.segments()[..4]),
    }
}

fn argon2() -> Argon2<'static> {
    let (memory, passes, lanes) = PARAMETERS;
    let parameters = Params::new(memory, passes, lanes, None).expect("the constants are within Argon2's bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
}

fn hash(password: &[u8]) -> String {
    let mut salt = [0u8; 16];
    rand::fill(&mut salt);
    argon2().hash_password_with_salt(password, &salt).expect("a salt of 16 bytes is right").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_known_by_its_hash_which_says_how_it_was_made() {
        let passwords = Passwords::default();
        let kept = passwords.hash("correct horse battery").await;
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        assert_ne!(kept, passwords.hash("correct horse battery").await);
        assert!(passwords.verify("correct horse battery", Some(&kept)).await);
        assert!(!passwords.verify("correct horse batterz", Some(&kept)).await);
        assert!(!passwords.verify("correct horse battery", None).await);
    }

    #[test]
    fn an_account_is_tried_five_times_and_a_source_thirty() {
        let passwords = Passwords::default();
        let (now, source) = (Mono(Duration::ZERO), Some(IpAddr::from([192, 0, 2, 1])));
        for _ in 0..5 {
            assert!(passwords.may_try(now, "ada", source).is_ok());
        }
        assert!(passwords.may_try(now, "ada", Some(IpAddr::from([192, 0, 2, 2]))).is_err());
        for number in 0..25 {
            assert!(passwords.may_try(now, &number.to_string(), source).is_ok());
        }
        assert!(passwords.may_try(now, "bob", source).is_err());
        passwords.was_right("ada");
        assert!(passwords.may_try(now, "ada", None).is_ok());
    }
}
