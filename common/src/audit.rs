//! The audit record: who changed what, as a chain in which nothing can be altered or left out
//! without its end being another.
//!
//! Invariants:
//! - A record's [`link`] covers its number, everything in it and the link before it.
//! - The links are computed here, for whoever makes the chain and for whoever verifies it.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The link before the first record.
pub const START: [u8; 32] = [0; 32];

/// Something that was changed, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: Uuid,
    /// When.
    pub at: Timestamp,
    /// Who: the name of the person, or of the project, whose token it was.
    pub by: String,
    /// The id of the token.
    pub token: Uuid,
    /// From where.
    pub from: Option<IpAddr>,
    /// Through what: the client's own name for itself.
    pub through: String,
    /// What was asked for: method and path.
    pub action: String,
    /// Names the request.
    pub request: Uuid,
    /// What became of it.
    pub changes: Vec<Change>,
}

/// A thing that was made, altered or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which kind of thing.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// SHA-256 of what was stored of it before, in hexadecimal; none when it was made.
    pub before: Option<String>,
    /// SHA-256 of what is stored of it since; none when it was removed.
    pub after: Option<String>,
}

/// A record in its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linked {
    /// 1 for the first, and one more for each.
    pub number: u64,
    /// The link, in hexadecimal.
    pub link: String,
    /// The record.
    #[serde(flatten)]
    pub record: Record,
}

/// The link of the record with this number, after `previous`.
pub fn link(previous: &[u8; 32], number: u64, record: &Record) -> [u8; 32] {
    let json = serde_json::to_vec(record).expect("records always serialize");
    Sha256::new().chain_update(previous).chain_update(number.to_be_bytes()).chain_update(json).finalize().into()
}

/// Where a chain is not what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// There is no such record.
    #[error("record {0} is missing")]
    Missing(u64),
    /// It, or its link, is not what it was.
    #[error("record {0} was altered")]
    Altered(u64),
    /// The chain ended there once, with another link.
    #[error("record {0} is not the one the anchor tells of: the chain was made anew up to it")]
    NotAnchored(u64),
}

/// A place in a chain that was written down elsewhere: `NUMBER:LINK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The record's number.
    pub number: u64,
    /// Its link.
    pub link: [u8; 32],
}

/// Not `NUMBER:LINK` with 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an anchor is NUMBER:LINK, as `rackhand audit verify` prints it")]
pub struct NoAnchor;

impl std::str::FromStr for Anchor {
    type Err = NoAnchor;

    fn from_str(text: &str) -> Result<Self, NoAnchor> {
        let (number, digits) = text.split_once(':').ok_or(NoAnchor)?;
        let mut link = [0; 32];
        hex::decode_to_slice(digits, &mut link).map_err(|_| NoAnchor)?;
        Ok(Self { number: number.parse().map_err(|_| NoAnchor)?, link })
    }
}

impl std::fmt::Display for Anchor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.number, hex::encode(self.link))
    }
}

/// Verifies a chain, record by record from the first.
#[derive(Clone, Debug)]
pub struct Verifier {
    end: Anchor,
    anchor: Option<Anchor>,
}

impl Verifier {
    /// Of a chain that had this record, if that is known.
    pub fn new(anchor: Option<Anchor>) -> Self {
        Self { end: Anchor { number: 0, link: START }, anchor }
    }

    /// Takes the next record.
    pub fn take(&mut self, linked: &Linked) -> Result<(), Broken> {
        let number = self.end.number + 1;
        if linked.number != number {
            return Err(Broken::Missing(number));
        }
        let link = link(&self.end.link, number, &linked.record);
        if hex::encode(link) != linked.link {
            return Err(Broken::Altered(number));
        }
        self.end = Anchor { number, link };
        match self.anchor {
            Some(anchor) if anchor.number == number && anchor.link != link => Err(Broken::NotAnchored(number)),
            _ => Ok(()),
        }
    }

    /// Where the chain ends: an anchor for later. Fails when it once was longer.
    pub fn end(&self) -> Result<Anchor, Broken> {
        match self.anchor {
            Some(anchor) if anchor.number > self.end.number => Err(Broken::Missing(self.end.number + 1)),
            _ => Ok(self.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(length: u64) -> Vec<Linked> {
        let mut previous = START;
        let linked = |number: u64| {
            let change =
                Change { kind: "rack".into(), id: format!("r{number}"), before: None, after: Some("00".into()) };
            let record = Record {
                id: Uuid::from_u128(number.into()),
                at: Timestamp::UNIX_EPOCH,
                by: "admin".into(),
                token: Uuid::nil(),
                from: Some([10, 0, 0, 1].into()),
                through: "rackhand/0.1".into(),
                action: "POST /v1/racks".into(),
                request: Uuid::nil(),
                changes: vec![change],
            };
            previous = link(&previous, number, &record);
            Linked { number, link: hex::encode(previous), record }
        };
        (1..=length).map(linked).collect()
    }

    fn verify(chain: &[Linked], anchor: Option<Anchor>) -> Result<Anchor, Broken> {
        let mut verifier = Verifier::new(anchor);
        chain.iter().try_for_each(|linked| verifier.take(linked))?;
        verifier.end()
    }

    #[test]
    fn a_whole_chain_verifies_and_names_its_end() {
        let chain = chain(5);
        let end = verify(&chain, None).unwrap();
        assert_eq!((end.number, hex::encode(end.link)), (5, chain[4].link.clone()));
        assert_eq!(verify(&chain, Some(end)), Ok(end));
        assert_eq!(end.to_string().parse(), Ok(end));
        assert_eq!(verify(&[], None).unwrap().number, 0);
    }

    /// Every field of a record, every digit of a link.
    #[test]
    fn whatever_is_altered_is_named() {
        let whole = chain(3);
        let text = serde_json::to_value(&whole[1]).unwrap();
        for (field, value) in text.as_object().unwrap() {
            let mut altered = text.clone();
            altered[field] = match value {
                serde_json::Value::Number(number) => (number.as_u64().unwrap() + 5).into(),
                serde_json::Value::Array(_) => serde_json::json!([]),
                serde_json::Value::String(text) if field == "at" => text.replace("1970", "1971").into(),
                serde_json::Value::String(text) => text.replace(['0', 'a'], "1").into(),
                other => panic!("{other}"),
            };
            assert_ne!(altered, text);
            let mut chain = whole.clone();
            chain[1] = serde_json::from_value(altered).unwrap();
            let named = verify(&chain, None);
            let wanted = if field == "number" { Broken::Missing(2) } else { Broken::Altered(2) };
            assert_eq!(named, Err(wanted), "{field}");
        }
    }

    #[test]
    fn what_is_left_out_or_exchanged_is_named() {
        let whole = chain(4);
        for missing in 0..3 {
            let mut chain = whole.clone();
            chain.remove(missing);
            assert_eq!(verify(&chain, None), Err(Broken::Missing(missing as u64 + 1)));
        }
        let end = verify(&whole, None).unwrap();
        assert_eq!(verify(&whole[..3], Some(end)), Err(Broken::Missing(4)));
        // Without an anchor nobody can know that there was a fourth.
        assert!(verify(&whole[..3], None).is_ok());
        let other = Anchor { link: [1; 32], ..end };
        assert_eq!(verify(&whole, Some(other)), Err(Broken::NotAnchored(4)));
    }
}
