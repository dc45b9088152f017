//! Who may log in: users (IPMI 2.0 §22.26–22.30).

use rackhand_common::bmc::{MAX_PASSWORD, MAX_USER, text};

use crate::packet::{Malformed, Reader, Request};

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

impl Access {
    /// Whether anybody logs in with it. A BMC that does not say whether it is enabled lets it in.
    pub fn may_log_in(&self) -> bool {
        self.is_enabled.unwrap_or(true) && self.is_messaging && (1..=5).contains(&self.privilege)
    }
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

/// What IPMI calls this privilege (§22.26, table 22-28).
pub fn privilege(code: u8) -> &'static str {
    match code {
        1 => "Callback",
        2 => "User",
        3 => "Operator",
        4 => "Administrator",
        5 => "OEM",
        _ => NO_ACCESS,
    }
}

const NO_ACCESS: &str = "NoAccess";

/// The code of what IPMI calls so; 15, no access, for anything else.
pub fn privilege_code(word: &str) -> u8 {
    (1..=5).find(|code| privilege(*code) == word).unwrap_or(0x0f)
}

/// Has a user log in on a channel with this privilege at most, by IPMI messages and link
/// authentication, or not at all with 15.
pub fn set_access(channel: u8, user: u8, privilege: u8) -> Request {
    let allows = if privilege == 0x0f { 0x80 } else { 0xb0 };
    Request::new(0x06, 0x43, &[allows | channel & 0x0f, user & 0x3f, privilege & 0x0f, 0])
}

/// Lets a user log in, or not.
pub fn set_enabled(user: u8, is_enabled: bool) -> Request {
    // With an empty password, as some BMCs refuse the shorter form.
    Form::Short.request(user, u8::from(is_enabled), "")
}

/// Gives a user this name; an empty one empties the place.
pub fn set_name(user: u8, name: &str) -> Request {
    let mut data = vec![user & 0x3f];
    data.extend(name.bytes().take(MAX_USER));
    data.resize(1 + MAX_USER, 0);
    Request::new(0x06, 0x45, &data)
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
    fn access_and_names_are_written() {
        assert_eq!(set_access(1, 3, 2).data, [0xb1, 3, 2, 0]);
        assert_eq!(set_access(1, 3, 0x0f).data, [0x81, 3, 0x0f, 0]);
        assert_eq!(set_name(3, "").data, [&[3][..], &[0; 16]].concat());
        assert_eq!(set_enabled(3, false).data[..2], [3, 0]);
        assert!(
            (0..=15).all(|code| privilege_code(privilege(code)) == if (1..=5).contains(&code) { code } else { 15 })
        );
    }

    #[test]
    fn access_and_names_are_read() {
        let access = read_access(&[0x0a, 0x42, 0x01, 0x34]).unwrap();
        assert_eq!(access, Access { places: 10, is_enabled: Some(true), is_messaging: true, privilege: 4 });
        assert_eq!(read_name(b"admin\0\0\0\0\0\0\0\0\0\0\0").unwrap().as_deref(), Some("admin"));
        assert_eq!(read_name(&[0; 16]).unwrap(), None);
    }
}
