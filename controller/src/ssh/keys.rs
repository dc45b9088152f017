//! Keys: the controller's own, by which it is known, and those of people as they are written down.

use std::{fmt, fs, io, path::Path};

use anyhow::{Context as _, Result};
use russh::keys::{
    self, HashAlg, PrivateKey,
    ssh_key::{LineEnding, private::Ed25519Keypair, public::KeyData},
};

use crate::authority;

/// The file of the controller's key, among the others, and so in every backup.
const FILE: &str = "ssh_host_ed25519.key";

/// The shortest RSA key (NIST SP 800-131A), and the longest, in bits: each takes time to verify.
const RSA: std::ops::RangeInclusive<u32> = 2048..=8192;

/// The controller's key.
pub struct HostKey(pub(super) PrivateKey);

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostKey").field(&fingerprint(self.0.public_key())).finish()
    }
}

/// Where consoles are to be had by SSH, and how it is known that it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// TCP.
    pub port: u16,
    /// The controller's key as in `known_hosts`.
    pub key: String,
    /// Its SHA-256.
    pub fingerprint: String,
}

impl HostKey {
    /// The key in this directory; made there when there is none yet.
    pub fn open(pki: &Path) -> Result<Self> {
        let path = pki.join(FILE);
        match host_key(pki)? {
            Some(key) => Ok(key),
            None => {
                let mut seed = zeroize::Zeroizing::new([0; 32]);
                rand::fill(&mut *seed);
                let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
                let text = key.to_openssh(LineEnding::LF).context("an SSH key cannot be written")?;
                authority::replace(pki, FILE, text.as_bytes())
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Ok(Self(key))
            }
        }
    }

    /// The public part, and where it is shown.
    pub fn door(&self, port: u16) -> Door {
        let key = self.0.public_key();
        Door { port, key: text(key), fingerprint: fingerprint(key) }
    }
}

/// The controller's key, if it was made.
pub fn host_key(pki: &Path) -> Result<Option<HostKey>> {
    let path = pki.join(FILE);
    let advice = "restore it from a backup, or remove it: another is made at the start, of which every `ssh` warns";
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => {
            let bytes = zeroize::Zeroizing::new(read.with_context(|| format!("cannot read {}", path.display()))?);
            let key = PrivateKey::from_openssh(&*bytes);
            let key = key.with_context(|| format!("{} is not an SSH key: {advice}", path.display()))?;
            Ok(Some(HostKey(key)))
        }
    }
}

/// A public key of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// Algorithm and key as in `authorized_keys`, without a comment.
    pub text: String,
    /// Its SHA-256, as `ssh-keygen -l` shows it.
    pub fingerprint: String,
}

/// Why a text is no key to log in with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAKey {
    /// It is the other half.
    #[error("is a private key, which nobody but you may have: give the file that ends in .pub")]
    Private,
    /// Nothing that is known.
    #[error("is not one line of a public key, such as `ssh-ed25519 AAAA… comment`")]
    Malformed,
    /// A kind of key that is not taken.
    #[error("is of a kind that is not taken: make one with `ssh-keygen -t ed25519`")]
    Kind,
    /// An RSA key that is too short, or too long.
    #[error("is an RSA key of less than 2048 or more than 8192 bits: make one with `ssh-keygen -t ed25519`")]
    Length,
}

impl std::str::FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(line: &str) -> Result<Self, NotAKey> {
        if line.contains("PRIVATE KEY") {
            return Err(NotAKey::Private);
        }
        let line = line.trim();
        if line.contains(['\n', '\r']) {
            return Err(NotAKey::Malformed);
        }
        let key = keys::PublicKey::from_openssh(line).map_err(|_| NotAKey::Malformed)?;
        match key.key_data() {
            KeyData::Ed25519(_) | KeyData::Ecdsa(_) => {}
            KeyData::Rsa(rsa) if RSA.contains(&rsa.key_size()) => {}
            KeyData::Rsa(_) => return Err(NotAKey::Length),
            _ => return Err(NotAKey::Kind),
        }
        Ok(Self { text: text(&key), fingerprint: fingerprint(&key) })
    }
}

/// Algorithm and key, without a comment.
fn text(key: &keys::PublicKey) -> String {
    keys::PublicKey::new(key.key_data().clone(), "").to_openssh().expect("a key that was read can be written")
}

/// As `ssh-keygen -l` shows it.
pub(super) fn fingerprint(key: &keys::PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use expect_test::{Expect, expect};

    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    #[test]
    fn a_key_is_taken_without_its_comment_and_anything_else_says_what_it_is() {
        let check = |line: &str, expected: Expect| {
            let read = line.parse::<PublicKey>();
            let shown = read.map_or_else(|error| error.to_string(), |key| format!("{}\n{}", key.text, key.fingerprint));
            expected.assert_eq(&format!("{shown}\n"));
        };
        check(
            &format!(" {ED25519} ada@laptop \n"),
            expect![[r#"
                ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ
                SHA256:T7SvZ2cslqpPj6nKzitCBHHlpVF3r3MvLwmFL0fk0IE
            "#]],
        );
        let malformed = || {
            expect![[r#"
                is not one line of a public key, such as `ssh-ed25519 AAAA… comment`
            "#]]
        };
        check("", malformed());
        check("ssh-ed25519 AAAA", malformed());
        check(&format!("{ED25519}\n{ED25519}"), malformed());
        check(&format!("command=\"sh\" {ED25519}"), malformed());
        check(
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU=",
            expect![[r#"
                is a private key, which nobody but you may have: give the file that ends in .pub
            "#]],
        );
        check(
            "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQCsejF7wrb5lNwREKONfULQhyG5xNNydE9BnkVbfQrKz/V6BkadCwAmzn/pGHb3QUP63mV/8yuHv0CwqTZbpDm+gtSHYox5cHeRwwGWH63llQE4PRxOuVUtIdSD54/FWcPBfcEqJvvC8qcUO5uonGi1Ec7QOzoNsCMQBinuIgjewQ==",
            expect![[r#"
                is an RSA key of less than 2048 or more than 8192 bits: make one with `ssh-keygen -t ed25519`
            "#]],
        );
    }

    #[test]
    fn the_controllers_key_is_made_once_for_its_user_alone_and_one_that_is_damaged_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert!(host_key(dir.path()).unwrap().is_none());
        let door = HostKey::open(dir.path()).unwrap().door(2222);
        let path = dir.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(HostKey::open(dir.path()).unwrap().door(2222), door);
        assert_eq!(door.key.parse::<PublicKey>().unwrap().fingerprint, door.fingerprint);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        fs::write(&path, "none").unwrap();
        let error = format!("{:#}", HostKey::open(dir.path()).unwrap_err());
        assert!(error.contains("restore it from a backup"), "{error}");
    }
}
