//! Key databases of UEFI Secure Boot (UEFI 2.10 §32.3), as a BMC keeps them.

/// The databases there are.
pub const NAMES: [&str; 4] = ["PK", "KEK", "db", "dbx"];

/// An entry of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The database it is in.
    pub database: String,
    /// Its name in the database's path.
    pub id: u32,
    /// The type of signature that it is; a certificate when there is none.
    pub signature: Option<String>,
    /// PEM, or the signature in words.
    pub content: String,
}

/// All databases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(Vec<Key>);

impl Keys {
    /// The vendor's.
    pub fn factory() -> Self {
        let mut keys = Self(Vec::new());
        for (database, name) in [("PK", "cGxhdGZvcm0="), ("KEK", "a2V5LWV4Y2hhbmdl"), ("db", "YWxsb3dlZA==")] {
            keys.add(database, None, certificate(name));
        }
        let revoked = "80B4D96931BF0D02FD91A61E19D14F1DA452E66DB2408CA8604D411F92659F0A";
        keys.add("dbx", Some("EFI_CERT_SHA256_GUID".into()), revoked.into());
        keys
    }

    /// Those of a database.
    pub fn of<'a>(&'a self, database: &'a str) -> impl Iterator<Item = &'a Key> {
        self.0.iter().filter(move |key| key.database == database)
    }

    /// Puts another one there; its id.
    pub fn add(&mut self, database: &str, signature: Option<String>, content: String) -> u32 {
        let id = self.0.iter().map(|key| key.id).max().unwrap_or(0) + 1;
        self.0.push(Key { database: database.to_owned(), id, signature, content });
        id
    }

    /// Takes one away; whether it was there.
    pub fn remove(&mut self, database: &str, id: u32) -> bool {
        let before = self.0.len();
        self.0.retain(|key| key.database != database || key.id != id);
        before != self.0.len()
    }

    /// Takes all of a database away.
    pub fn clear(&mut self, database: &str) {
        self.0.retain(|key| key.database != database);
    }
}

/// Something that looks like a certificate, of these bytes in base 64.
pub fn certificate(base64: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")
}
