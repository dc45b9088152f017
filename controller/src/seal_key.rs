//! The key that secrets in the database are sealed with: `seal.key` beside the authority's keys, in
//! hexadecimal, and its replacement by another.
//!
//! While the key is replaced, the file has two lines, the new key before the old one: what opens
//! the database then opens what either sealed, and seals with the new one. The file is replaced
//! whole at both ends of that, and the database is changed in between, in one transaction.
//!
//! Invariants:
//! - A key that anything in the database may be sealed with is in the file.
//! - Only whoever holds the lock of the data directory replaces the key.

use std::{fs, io, path::Path};

use rackhand_common::seal::{self, Seal};

use crate::authority::{AuthorityError, replace};

/// The file.
pub const FILE: &str = "seal.key";

/// A key, and while it is replaced the one before.
struct Keys {
    newest: [u8; 32],
    older: Option<[u8; 32]>,
}

impl Keys {
    fn seal(&self) -> Seal {
        let newest = Seal::new(&self.newest);
        match &self.older {
            Some(older) => newest.or_older(older),
            None => newest,
        }
    }
}

/// The seal with the key in this directory. One is made where there is none; the database knows
/// whether it is its own.
pub fn seal(dir: &Path) -> Result<Seal, AuthorityError> {
    let keys = match read(dir)? {
        Some(keys) => keys,
        None => {
            let keys = Keys { newest: seal::fresh_key(), older: None };
            write(dir, &keys)?;
            keys
        }
    };
    Ok(keys.seal())
}

/// The seal with what a copy of the file says, if that is a key.
pub fn of_file(bytes: &[u8]) -> Option<Seal> {
    Some(parse(str::from_utf8(bytes).ok()?)?.seal())
}

/// The seal that everything is to be sealed with anew, when the key is being replaced.
pub fn unfinished(dir: &Path) -> Result<Option<Seal>, AuthorityError> {
    Ok(read(dir)?.filter(|keys| keys.older.is_some()).map(|keys| Seal::new(&keys.newest)))
}

/// Puts a new key before the one there is.
pub(crate) fn begin(dir: &Path) -> Result<(), AuthorityError> {
    let Some(Keys { newest, older: None }) = read(dir)? else {
        return Err(AuthorityError::Order("the key is missing, or being replaced already"));
    };
    write(dir, &Keys { newest: seal::fresh_key(), older: Some(newest) })
}

/// Destroys the old key, which nothing is sealed with any more.
pub(crate) fn end(dir: &Path) -> Result<(), AuthorityError> {
    let Some(Keys { newest, .. }) = read(dir)? else {
        return Err(AuthorityError::Order("the key is missing"));
    };
    write(dir, &Keys { newest, older: None })
}

fn read(dir: &Path) -> Result<Option<Keys>, AuthorityError> {
    let path = dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| AuthorityError::File(path.clone(), error))?,
    };
    parse(&text).map(Some).ok_or_else(|| AuthorityError::Damaged(path, "it is not one key, or two".into()))
}

fn parse(text: &str) -> Option<Keys> {
    let mut keys = text.split_whitespace().map(|line| {
        let mut key = [0; 32];
        hex::decode_to_slice(line, &mut key).is_ok().then_some(key)
    });
    let keys = (keys.next(), keys.next(), keys.next());
    match keys {
        (Some(Some(newest)), None, None) => Some(Keys { newest, older: None }),
        (Some(Some(newest)), Some(Some(older)), None) => Some(Keys { newest, older: Some(older) }),
        _ => None,
    }
}

fn write(dir: &Path, keys: &Keys) -> Result<(), AuthorityError> {
    let mut text = hex::encode(keys.newest);
    if let Some(older) = &keys.older {
        text += "\n";
        text += &hex::encode(older);
    }
    replace(dir, FILE, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_replaced_in_two_steps_and_between_them_both_open() {
        let dir = tempfile::tempdir().unwrap();
        begin(dir.path()).unwrap_err();
        let before = seal(dir.path()).unwrap().seal("here", "canary");
        assert!(unfinished(dir.path()).unwrap().is_none());
        begin(dir.path()).unwrap();
        begin(dir.path()).unwrap_err();
        let newest = unfinished(dir.path()).unwrap().unwrap();
        newest.open("here", &before).unwrap_err();
        let between = seal(dir.path()).unwrap();
        assert_eq!(between.open("here", &before).as_deref(), Ok("canary"));
        let after = between.seal("here", "canary");
        for _ in 0..2 {
            end(dir.path()).unwrap();
            let seal = seal(dir.path()).unwrap();
            assert_eq!(seal.open("here", &after).as_deref(), Ok("canary"));
            seal.open("here", &before).unwrap_err();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "an old key is left beside");
    }

    #[test]
    fn a_file_is_one_key_or_two_and_never_anything_else() {
        let (one, two) = ("07".repeat(32), "08".repeat(32));
        for good in [one.clone(), format!("{one}\n"), format!("{one}\n{two}\n")] {
            assert!(parse(&good).is_some(), "{good}");
        }
        for bad in ["", "07", &format!("{one}{two}"), &format!("{one}\n07"), &format!("{one}\n{two}\n{one}")] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
