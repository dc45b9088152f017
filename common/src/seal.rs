//! Secrets that must be readable again, as they are stored: AES-256-GCM-SIV (RFC 8452) with a
//! random nonce, in hexadecimal after a prefix that names the form.
//!
//! Invariants:
//! - A sealed secret opens only with the key and for the run it was sealed for: moved to
//!   another place it is refused.
//! - Two seals of one secret differ.
//!
//! The key lies outside what is sealed, in a file that its reader alone may read. It protects
//! copies and backups of the data, not a machine on which both can be read.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

use crate::{
    id::RunId,
    intent::{Deploy, Host, Order, Work},
};

const PREFIX: &str = "sealed-1:";

/// Seals with one key; opens with that, and while keys change with the one before.
pub struct Seal {
    key: RandomizedNonceKey,
    older: Option<RandomizedNonceKey>,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

/// What was sealed with another key or for another place, was altered, or is not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sealed secret cannot be opened: it was sealed with another key, or altered")]
pub struct NotOpened;

/// A fresh key for [`Seal::new`].
pub fn fresh_key() -> [u8; 32] {
    let mut key = [0; 32];
    aws_lc_rs::rand::fill(&mut key).expect("the system has random bytes");
    key
}

/// Whether this text is a sealed secret.
pub fn is_sealed(text: &str) -> bool {
    text.starts_with(PREFIX)
}

impl Seal {
    /// With this key.
    pub fn new(key: &[u8; 32]) -> Self {
        Self { key: usable(key), older: None }
    }

    /// The same, which also opens what was sealed with this key.
    pub fn or_older(self, key: &[u8; 32]) -> Self {
        Self { older: Some(usable(key)), ..self }
    }

    /// The secret as it is stored in `place`, which is told again to open it.
    pub fn seal(&self, place: &str, secret: &str) -> String {
        let mut bytes = secret.as_bytes().to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(place), &mut bytes).expect("secrets are short");
        format!("{PREFIX}{}{}", hex::encode(nonce.as_ref()), hex::encode(bytes))
    }

    /// The secret that was sealed in this place.
    pub fn open(&self, place: &str, sealed: &str) -> Result<String, NotOpened> {
        let bytes = hex::decode(sealed.strip_prefix(PREFIX).ok_or(NotOpened)?).map_err(|_| NotOpened)?;
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN).ok_or(NotOpened)?;
        let open = |key: &RandomizedNonceKey| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut text = text.to_vec();
            let secret = key.open_in_place(nonce, Aad::from(place), &mut text).ok()?.to_vec();
            String::from_utf8(secret).ok()
        };
        open(&self.key).or_else(|| open(self.older.as_ref()?)).ok_or(NotOpened)
    }
}

fn usable(key: &[u8; 32]) -> RandomizedNonceKey {
    RandomizedNonceKey::new(&AES_256_GCM_SIV, key).expect("the algorithm takes 32 bytes")
}

/// What is stored of something that holds secrets of a run.
pub trait Sealed: Sized {
    /// With its secrets sealed.
    fn sealed(&self, seal: &Seal, run: RunId) -> Self;
    /// With its secrets opened again.
    fn opened(self, seal: &Seal, run: RunId) -> Result<Self, NotOpened>;
}

impl Sealed for Host {
    fn sealed(&self, seal: &Seal, run: RunId) -> Self {
        let user_data = self.user_data.as_ref().map(|data| seal.seal(&place(run), data));
        Self { user_data, ..self.clone() }
    }

    fn opened(self, seal: &Seal, run: RunId) -> Result<Self, NotOpened> {
        let user_data = self.user_data.as_ref().map(|data| seal.open(&place(run), data)).transpose()?;
        Ok(Self { user_data, ..self })
    }
}

impl Sealed for Deploy {
    fn sealed(&self, seal: &Seal, run: RunId) -> Self {
        Self { host: self.host.sealed(seal, run), ..self.clone() }
    }

    fn opened(self, seal: &Seal, run: RunId) -> Result<Self, NotOpened> {
        Ok(Self { host: self.host.opened(seal, run)?, ..self })
    }
}

impl Sealed for Order {
    fn sealed(&self, seal: &Seal, run: RunId) -> Self {
        let work = match &self.work {
            Work::Deploy(deploy) => Work::Deploy(deploy.sealed(seal, run)),
            Work::DeployOn(mainboard, deploy) => Work::DeployOn(mainboard.clone(), deploy.sealed(seal, run)),
            work @ (Work::Erase
            | Work::EraseOn(_)
            | Work::Test(_)
            | Work::Rescue(_)
            | Work::Firmware(_)
            | Work::RegainBmc(_)) => work.clone(),
        };
        Self { work, ..self.clone() }
    }

    fn opened(self, seal: &Seal, run: RunId) -> Result<Self, NotOpened> {
        let work = match self.work {
            Work::Deploy(deploy) => Work::Deploy(deploy.opened(seal, run)?),
            Work::DeployOn(mainboard, deploy) => Work::DeployOn(mainboard, deploy.opened(seal, run)?),
            work @ (Work::Erase
            | Work::EraseOn(_)
            | Work::Test(_)
            | Work::Rescue(_)
            | Work::Firmware(_)
            | Work::RegainBmc(_)) => work,
        };
        Ok(Self { work, ..self })
    }
}

fn place(run: RunId) -> String {
    format!("user-data of run {run}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_with_its_key_in_its_place_and_nowhere_else() {
        let seal = Seal::new(&[7; 32]);
        let sealed = seal.seal("here", "canary");
        assert!(is_sealed(&sealed) && !sealed.contains("canary") && !sealed.contains(&hex::encode("canary")));
        assert_eq!(seal.open("here", &sealed).as_deref(), Ok("canary"));
        assert_eq!(seal.open("there", &sealed), Err(NotOpened));
        assert_eq!(Seal::new(&[8; 32]).open("here", &sealed), Err(NotOpened));
        assert_ne!(seal.seal("here", "canary"), sealed);
        for altered in ["", "canary", PREFIX, &sealed[..sealed.len() - 2], &format!("{sealed}00"), &sealed[1..]] {
            assert_eq!(seal.open("here", altered), Err(NotOpened), "{altered}");
        }
        assert_eq!(seal.open("here", &seal.seal("here", "")).as_deref(), Ok(""));
    }

    #[test]
    fn while_keys_change_both_open_and_the_newer_seals() {
        let (old, new) = (Seal::new(&[7; 32]), Seal::new(&[8; 32]));
        let both = Seal::new(&[8; 32]).or_older(&[7; 32]);
        for sealed in [old.seal("here", "canary"), new.seal("here", "canary")] {
            assert_eq!(both.open("here", &sealed).as_deref(), Ok("canary"));
            assert_eq!(both.open("there", &sealed), Err(NotOpened));
        }
        let sealed = both.seal("here", "canary");
        assert_eq!((new.open("here", &sealed).as_deref(), old.open("here", &sealed)), (Ok("canary"), Err(NotOpened)));
    }
}
