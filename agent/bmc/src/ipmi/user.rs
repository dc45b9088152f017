//! Who may log in: users (IPMI 2.0 §22.26–22.30).

use super::packet::{Malformed, Reader, Request};
use crate::told::{MAX_PASSWORD, MAX_USER, text};

/// What a user may do on a channel, and how many users there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// How many places for users there are.
    pub places: u8,
    /// Whether it is enabled; absent when the BMC does not say.
    pub is_enabled: Option<bool>,
    /// Whether it may send IPMI messages on this channel.
    pub is_messaging: bool,
    /// The most privilege it has: 4 is an administrator's, 15 none.
    pub privilege: u8,
}

/// Asks what a user may do on a channel.
pub fn access(channel: u8, user: u8) -> Request {
    Request::new(0x06, 0x44, &[channel & 0x0f, user & 0x3f])
}

/// Reads what a user may do.
pub fn read_access(data: &[u8]) -> Result<Access, Malformed> {
    let [places, status, _fixed, access] = Reader::new(data).array()?;
    Ok(Access {
        places: places & 0x3f,
        is_enabled: match status >> 6 {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        },
        is_messaging: access & 0x10 != 0,
        privilege: access & 0x0f,
    })
}

/// Asks for a user's name.
pub fn name(user: u8) -> Request {
    Request::new(0x06, 0x46, &[user & 0x3f])
}

/// Reads a user's name; absent when the place is empty.
pub fn read_name(data: &[u8]) -> Result<Option<String>, Malformed> {
    let bytes: [u8; MAX_USER] = Reader::new(data).array()?;
    let name = bytes.split(|byte| *byte == 0 || *byte == 0xff).next().unwrap_or_default();
    Ok(text(&String::from_utf8_lossy(name)))
}

/// The forms in which a BMC keeps a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// IPMI 2.0's, of 20 bytes.
    Long,
    /// IPMI 1.5's, of 16 bytes.
    Short,
}

impl Form {
    /// The longest password that fits, in bytes.
    pub fn length(self) -> usize {
        match self {
            Self::Long => MAX_PASSWORD,
            Self::Short => 16,
        }
    }

    fn request(self, user: u8, operation: u8, password: &str) -> Request {
        let mut data = vec![user & 0x3f, operation];
        if self == Self::Long {
            data[0] |= 0x80;
        }
        data.extend(password.as_bytes());
        data.resize(2 + self.length(), 0);
        Request::new(0x06, 0x47, &data)
    }
}

/// Gives a user a password.
pub fn set_password(user: u8, form: Form, password: &str) -> Request {
    form.request(user, 0x02, password)
}

/// Asks whether this is a user's password.
pub fn test_password(user: u8, form: Form, password: &str) -> Request {
    form.request(user, 0x03, password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_padded_to_its_form() {
        let long = set_password(3, Form::Long, "twenty bytes exactly");
        assert_eq!((long.data.len(), long.data[0], long.data[21]), (22, 0x83, b'y'));
        let short = set_password(3, Form::Short, "short");
        assert_eq!(short.data, *b"\x03\x02short\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn access_and_names_are_read() {
        let access = read_access(&[0x0a, 0x42, 0x01, 0x34]).unwrap();
        assert_eq!(access, Access { places: 10, is_enabled: Some(true), is_messaging: true, privilege: 4 });
        assert_eq!(read_name(b"admin\0\0\0\0\0\0\0\0\0\0\0").unwrap().as_deref(), Some("admin"));
        assert_eq!(read_name(&[0; 16]).unwrap(), None);
    }
}
