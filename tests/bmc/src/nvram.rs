//! What a BMC keeps while it has no power: its certificate and its users, in a directory.

use std::{fs, io, path::PathBuf};

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::state::User;

/// A directory for what is kept.
#[derive(Clone, Debug)]
pub struct Nvram(PathBuf);

impl Nvram {
    /// In this directory, which is made where it is not there.
    pub fn open(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self(directory))
    }

    /// The certificate for these names and its key: those that are kept, or fresh ones that are from
    /// now on.
    pub(crate) fn certificate(
        &self,
        names: Vec<String>,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), Box<dyn std::error::Error + Send + Sync>> {
        let (certificate, key) = (self.0.join("certificate.der"), self.0.join("key.der"));
        if !certificate.exists() {
            let made = rcgen::generate_simple_self_signed(names)?;
            self.replace("key.der", &made.signing_key.serialize_der())?;
            self.replace("certificate.der", made.cert.der())?;
        }
        let key = KeyPair::try_from(fs::read(key)?)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((CertificateDer::from(fs::read(certificate)?), key))
    }

    /// The users that are kept, if any are.
    pub(crate) fn users(&self) -> io::Result<Option<Vec<User>>> {
        match fs::read(self.0.join("users.json")) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps these users.
    pub(crate) fn keep_users(&self, users: &[User]) -> io::Result<()> {
        self.replace("users.json", &serde_json::to_vec(users)?)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let fresh = self.0.join(format!("{name}.new"));
        fs::write(&fresh, bytes)?;
        fs::rename(fresh, self.0.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_and_users_are_as_they_were() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Nvram::open(directory.path().join("bmc")).unwrap();
        let certificate = || open().certificate(vec!["bmc-1".into()]).unwrap().0;
        assert_eq!(certificate(), certificate());
        assert!(open().users().unwrap().is_none());
        let user = User { name: "root".into(), password: b"next".to_vec(), ..User::default() };
        open().keep_users(&[User::default(), user]).unwrap();
        let kept = open().users().unwrap().unwrap();
        assert_eq!((kept.len(), kept[1].name.as_str(), kept[1].password.as_slice()), (2, "root", &b"next"[..]));
    }
}
