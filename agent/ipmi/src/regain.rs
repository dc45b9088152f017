//! Getting a BMC back that lets us in no more: a user and a password set by whoever needs neither, which is
//! the machine itself by the system interface (IPMI 2.0 §5.1; §22.22–22.30).
//!
//! Invariants:
//! - The password is set, and known to be where the BMC can test it, before the user may log in with
//!   anything: an account that was made by somebody else is never let in with their password.
//! - Only the user that is named is touched, and of channels only those that are LANs.
//! - It may be given up anywhere, and begun again with the same user and password.
//! - What can be read again is; what a BMC says to a change proves nothing.

use crate::{
    lan,
    packet::{Malformed, Request},
    user::{self, Form},
};

/// Numbers that channels have which may be a LAN (§6.3).
const CHANNELS: std::ops::RangeInclusive<u8> = 1..=11;

/// The place of the first user that has a name (§22.28): the one before is for whoever gives none.
const FIRST: u8 = 2;

/// The most places that there can be.
const PLACES: u8 = 63;

/// The privilege of an administrator (§22.26).
const ADMINISTRATOR: u8 = 4;

/// Why a request has no ordinary answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum No<E> {
    /// The BMC says that it does not do it (table 5-2).
    Code(u8),
    /// Nothing more can be asked.
    Ended(E),
}

/// The way to a BMC: data behind the completion code 0x00, or why there is none.
pub type Ask<'a, E> = dyn FnMut(&Request) -> Result<Vec<u8>, No<E>> + 'a;

/// Why a BMC was not regained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRegained<E: std::error::Error + 'static> {
    /// None of its channels is a LAN.
    #[error("the BMC has no channel that is a LAN")]
    NoLan,
    /// Every place for a user has another one.
    #[error("the BMC has no place left for a user")]
    NoPlace,
    /// IPMI has no room for this name or password.
    #[error("IPMI takes names of 1 to 16 bytes and passwords of 1 to 20, without a NUL")]
    TooLong,
    /// It says no.
    #[error("the BMC refused {0} (completion code {1:#04x})")]
    Refused(&'static str, u8),
    /// It said that it did, and reads back otherwise.
    #[error("the BMC said that it did, and {0}")]
    NotKept(&'static str),
    /// It says what means nothing.
    #[error("the BMC's answer cannot be read: {0}")]
    Malformed(#[from] Malformed),
    /// It does not answer.
    #[error("the BMC was not asked to the end")]
    Ended(#[source] E),
}

/// What was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regained {
    /// The user's place.
    pub place: u8,
    /// Whether it was an empty one.
    pub is_new: bool,
    /// Whether the BMC knew the password when it was tested; some cannot.
    pub is_tested: bool,
    /// Channels on which it may log in now.
    pub channels: Vec<u8>,
}

/// Has a user of this name log in as an administrator with this password on every LAN of the BMC that
/// `ask` reaches.
pub fn regain<E: std::error::Error + 'static>(
    ask: &mut Ask<'_, E>,
    user: &str,
    password: &str,
) -> Result<Regained, NotRegained<E>> {
    let fits = |text: &str, most: usize| (1..=most).contains(&text.len()) && !text.contains('\0');
    if !fits(user, rackhand_common::bmc::MAX_USER) || !fits(password, Form::Long.length()) {
        return Err(NotRegained::TooLong);
    }
    let mut bmc = Asked(ask);
    let channels = bmc.lans()?;
    let first = *channels.first().ok_or(NotRegained::NoLan)?;
    let (place, is_new) = bmc.place(first, user)?;
    if is_new {
        bmc.tell("a user's name", &user::set_name(place, user))?;
    }
    let is_tested = bmc.password(place, password)?;
    let channels = bmc.let_in(&channels, place)?;
    if bmc.name(place)?.as_deref() != Some(user) {
        return Err(NotRegained::NotKept("the user has another name"));
    }
    Ok(Regained { place, is_new, is_tested, channels })
}

struct Asked<'a, E>(&'a mut Ask<'a, E>);

impl<E: std::error::Error + 'static> Asked<'_, E> {
    /// What it answers, or the completion code by which it says no.
    fn ask(&mut self, request: &Request) -> Result<Result<Vec<u8>, u8>, NotRegained<E>> {
        match (self.0)(request) {
            Ok(data) => Ok(Ok(data)),
            Err(No::Code(code)) => Ok(Err(code)),
            Err(No::Ended(why)) => Err(NotRegained::Ended(why)),
        }
    }

    fn tell(&mut self, what: &'static str, request: &Request) -> Result<Vec<u8>, NotRegained<E>> {
        self.ask(request)?.map_err(|code| NotRegained::Refused(what, code))
    }

    fn lans(&mut self) -> Result<Vec<u8>, NotRegained<E>> {
        let mut lans = Vec::new();
        for channel in CHANNELS {
            // Most numbers are no channel's.
            if let Ok(data) = self.ask(&lan::channel(channel))?
                && lan::read_is_lan(&data).unwrap_or(false)
            {
                lans.push(channel);
            }
        }
        Ok(lans)
    }

    /// The name in a place; some BMCs say by a completion code that there is none.
    fn name(&mut self, place: u8) -> Result<Option<String>, NotRegained<E>> {
        match self.ask(&user::name(place))? {
            Ok(data) => Ok(user::read_name(&data)?),
            Err(_) => Ok(None),
        }
    }

    /// The place of the user, and whether it was nobody's.
    fn place(&mut self, channel: u8, user: &str) -> Result<(u8, bool), NotRegained<E>> {
        let places = user::read_access(&self.tell("what a user may do", &user::access(channel, 1))?)?.places;
        let mut free = None;
        for place in FIRST..=places.min(PLACES) {
            match self.name(place)? {
                Some(name) if name == user => return Ok((place, false)),
                Some(_) => {}
                None => free = free.or(Some(place)),
            }
        }
        Ok((free.ok_or(NotRegained::NoPlace)?, true))
    }

    /// Sets the password; whether the BMC can tell that it knows it.
    fn password(&mut self, place: u8, password: &str) -> Result<bool, NotRegained<E>> {
        let mut form = Form::Long;
        match self.ask(&user::set_password(place, form, password))? {
            // An old BMC keeps 16 bytes, and says so by the number of the user or the length.
            Err(_) if password.len() <= Form::Short.length() => {
                form = Form::Short;
                self.tell("the password", &user::set_password(place, form, password))?;
            }
            set => drop(set.map_err(|code| NotRegained::Refused("the password", code))?),
        }
        match self.ask(&user::test_password(place, form, password))? {
            Ok(_) => Ok(true),
            Err(0x80 | 0x81) => Err(NotRegained::NotKept("does not know the password")),
            Err(_) => Ok(false),
        }
    }

    /// Lets the user in on these channels; those on which it may log in now, which is one at least.
    fn let_in(&mut self, channels: &[u8], place: u8) -> Result<Vec<u8>, NotRegained<E>> {
        self.tell("to enable the user", &user::set_enabled(place, true))?;
        let (mut open, mut why) = (Vec::new(), None);
        for channel in channels {
            match self.let_in_on(*channel, place) {
                Ok(()) => open.push(*channel),
                Err(ended @ NotRegained::Ended(_)) => return Err(ended),
                // Of several LANs one may be nothing that is logged in by.
                Err(error) => why = why.or(Some(error)),
            }
        }
        match why {
            Some(why) if open.is_empty() => Err(why),
            _ => Ok(open),
        }
    }

    fn let_in_on(&mut self, channel: u8, place: u8) -> Result<(), NotRegained<E>> {
        self.tell("the user's privilege", &user::set_access(channel, place, ADMINISTRATOR))?;
        let access = user::read_access(&self.tell("what a user may do", &user::access(channel, place))?)?;
        if !access.may_log_in() || access.privilege != ADMINISTRATOR {
            return Err(NotRegained::NotKept("does not let the user in"));
        }
        let read = lan::channel_access(channel);
        // One that does not tell how its channel is reached is proven by a login.
        let Ok(told) = self.ask(&read)? else { return Ok(()) };
        let told = lan::read_channel_access(&told)?;
        if told.is_open() {
            return Ok(());
        }
        // For now, and for good.
        for lasts in [false, true] {
            self.tell("to open its LAN", &lan::open_channel(channel, told, lasts))?;
        }
        if lan::read_channel_access(&self.tell("how its LAN is reached", &read)?)?.is_open() {
            Ok(())
        } else {
            Err(NotRegained::NotKept("its LAN is closed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, io};

    use proptest::prelude::*;

    use super::*;

    /// A BMC with a LAN on channel 1, written down by hand.
    #[derive(Clone, Debug, PartialEq)]
    struct Bmc {
        /// Name, password, whether enabled, access byte.
        users: Vec<(String, Vec<u8>, bool, u8)>,
        access: [u8; 2],
        /// Says yes to a new password, and keeps the old one.
        lies: bool,
        /// Knows passwords of 16 bytes only.
        is_old: bool,
        cannot_test: bool,
    }

    impl Bmc {
        fn new(users: &[&str]) -> Self {
            let user = |name: &&str| ((*name).to_owned(), b"tenants".to_vec(), false, 0x0f);
            let mut users: Vec<_> = std::iter::once(&"").chain(users).map(user).collect();
            users.resize(5, user(&""));
            Self { users, access: [0x00, 0x02], lies: false, is_old: false, cannot_test: false }
        }

        fn answer(&mut self, request: &Request) -> Result<Vec<u8>, No<Infallible>> {
            let data = &request.data;
            let place = |at: usize| usize::from(data[at] & 0x3f).checked_sub(1).ok_or(No::Code(0xcc));
            match (request.netfn, request.command) {
                (0x06, 0x42) if data[0] == 1 => Ok(vec![1, 4, 1, 0x80, 0xf2, 0x1b, 0, 0, 0]),
                (0x06, 0x40) => {
                    self.access = [data[1] & 0x3f, data[2] & 0x0f];
                    Ok(vec![])
                }
                (0x06, 0x41) => Ok(self.access.to_vec()),
                (0x06, 0x43) => {
                    let access = (data[0] & 0x70) | (data[2] & 0x0f);
                    self.users[place(1)?].3 = access;
                    Ok(vec![])
                }
                (0x06, 0x44) => {
                    let (_, _, is_enabled, access) = &self.users[place(1)?];
                    Ok(vec![self.users.len() as u8, if *is_enabled { 0x41 } else { 0x81 }, 1, *access])
                }
                (0x06, 0x45) => {
                    let name = data[1..].split(|byte| *byte == 0).next().unwrap();
                    self.users[place(0)?].0 = String::from_utf8(name.to_vec()).unwrap();
                    Ok(vec![])
                }
                (0x06, 0x46) => {
                    let name = &self.users[place(0)?].0;
                    if name.is_empty() {
                        return Err(No::Code(0xcc));
                    }
                    let mut bytes = name.clone().into_bytes();
                    bytes.resize(16, 0);
                    Ok(bytes)
                }
                (0x06, 0x47) if data[0] & 0x80 != 0 && self.is_old => Err(No::Code(0xcc)),
                (0x06, 0x47) => {
                    let place = place(0)?;
                    let password: Vec<_> = data[2..].iter().copied().take_while(|byte| *byte != 0).collect();
                    match data[1] {
                        1 => {
                            // Whoever is let in has a password that is ours.
                            assert_ne!(self.users[place].1, b"tenants", "let in with somebody else's password");
                            self.users[place].2 = true;
                        }
                        2 if !self.lies => self.users[place].1 = password,
                        2 => {}
                        _ if self.cannot_test => return Err(No::Code(0xc1)),
                        _ if self.users[place].1 != password => return Err(No::Code(0x80)),
                        _ => {}
                    }
                    Ok(vec![])
                }
                _ => Err(No::Code(0xcc)),
            }
        }

        fn regain(&mut self) -> Result<Regained, NotRegained<Infallible>> {
            regain(&mut |request| self.answer(request), "rackhand", "Next-1234567.xyz")
        }

        fn check(&self, place: u8) {
            let (name, password, is_enabled, access) = &self.users[usize::from(place) - 1];
            assert_eq!((name.as_str(), &password[..]), ("rackhand", &b"Next-1234567.xyz"[..]));
            assert!(*is_enabled && *access == 0x34, "{self:?}");
            assert_eq!(self.access, [2, 4], "its LAN is closed");
        }
    }

    #[test]
    fn a_user_is_let_in_with_its_new_password_and_others_are_as_they_were() {
        let mut bmc = Bmc::new(&["root", "rackhand"]);
        let root = bmc.users[1].clone();
        let regained = bmc.regain().unwrap();
        assert_eq!(regained, Regained { place: 3, is_new: false, is_tested: true, channels: vec![1] });
        bmc.check(3);
        assert_eq!(bmc.users[1], root);
        // Once more changes nothing.
        let before = bmc.clone();
        bmc.regain().unwrap();
        assert_eq!(bmc, before);
    }

    #[test]
    fn a_user_that_was_removed_is_put_into_an_empty_place() {
        let mut bmc = Bmc { is_old: true, cannot_test: true, ..Bmc::new(&["root"]) };
        let regained = bmc.regain().unwrap();
        assert_eq!(regained, Regained { place: 3, is_new: true, is_tested: false, channels: vec![1] });
        bmc.check(3);
        let mut full = Bmc::new(&["a", "b", "c", "d"]);
        assert_eq!(full.regain(), Err(NotRegained::NoPlace));
    }

    #[test]
    fn a_bmc_that_keeps_its_password_lets_nobody_in() {
        let mut bmc = Bmc { lies: true, ..Bmc::new(&["rackhand"]) };
        assert_eq!(bmc.regain(), Err(NotRegained::NotKept("does not know the password")));
        assert!(!bmc.users[1].2);
    }

    #[test]
    fn what_ipmi_has_no_room_for_is_not_begun() {
        for (user, password) in
            [("", "p"), ("seventeen letters", "p"), ("u", ""), ("u", "a\0b"), ("u", &"p".repeat(21))]
        {
            let mut never = |_: &Request| -> Result<Vec<u8>, No<Infallible>> { panic!("it was asked") };
            assert_eq!(regain(&mut never, user, password), Err(NotRegained::TooLong));
        }
    }

    #[test]
    fn given_up_anywhere_it_is_begun_again_and_done() {
        for answers in 0.. {
            let mut bmc = Bmc::new(&["root"]);
            let mut left = answers;
            let mut ask = |request: &Request| {
                if left == 0 {
                    return Err(No::Ended(io::Error::from(io::ErrorKind::TimedOut)));
                }
                left -= 1;
                bmc.answer(request).map_err(|no| match no {
                    No::Code(code) => No::Code(code),
                    No::Ended(never) => match never {},
                })
            };
            let is_done = regain(&mut ask, "rackhand", "Next-1234567.xyz").is_ok();
            let regained = bmc.regain().unwrap();
            bmc.check(regained.place);
            assert_eq!(bmc.users.iter().filter(|user| user.0 == "rackhand").count(), 1);
            if is_done {
                assert!(answers > 20, "it asked {answers} times only");
                break;
            }
        }
    }

    proptest! {
        #[test]
        fn no_answers_break_it_or_keep_it_for_ever(
            answers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..24), 1..40),
            codes in prop::collection::vec(any::<Option<u8>>(), 1..40),
        ) {
            let mut asked = 0;
            let mut ask = |_: &Request| {
                let at = asked;
                asked += 1;
                match codes[at % codes.len()] {
                    Some(code) => Err(No::Code(code)),
                    None => Ok(answers[at % answers.len()].clone()),
                }
            };
            let _: Result<_, NotRegained<Infallible>> = regain(&mut ask, "rackhand", "Next-1234567.xyz");
            prop_assert!(asked < 200, "it asked {asked} times");
        }
    }
}
