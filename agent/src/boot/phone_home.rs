//! Where an installed system calls home, and how it is known that it may.
//!
//! The address it is given ends in `MACHINE.RUN.TAG`, where the tag is a keyed BLAKE3 of the
//! first two under a key that never leaves boot: nothing has to be remembered, also across
//! restarts, and nobody can call home for another machine or an earlier run.

use std::net::SocketAddrV4;

use rackhand_common::id::{MachineId, RunId};

/// Makes and checks the addresses.
#[derive(Clone)]
pub(super) struct PhoneHome {
    key: [u8; 32],
    http: SocketAddrV4,
}

impl PhoneHome {
    /// `http` is where this node serves plain HTTP.
    pub(super) fn new(key: [u8; 32], http: SocketAddrV4) -> Self {
        Self { key, http }
    }

    /// Where the system that `run` installs on `machine` calls.
    pub(super) fn url(&self, machine: MachineId, run: RunId) -> String {
        format!("http://{}/phone-home/{}", self.http, self.token(machine, run))
    }

    /// Who calls, if the token is one of ours.
    pub(super) fn caller(&self, token: &str) -> Option<(MachineId, RunId)> {
        let mut parts = token.split('.');
        let (machine, run) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        // Compared as hashes, in constant time.
        let same = blake3::hash(token.as_bytes()) == blake3::hash(self.token(machine, run).as_bytes());
        same.then_some((machine, run))
    }

    fn token(&self, machine: MachineId, run: RunId) -> String {
        let named = format!("{machine}.{run}");
        let tag = blake3::keyed_hash(&self.key, named.as_bytes());
        format!("{named}.{}", &tag.to_hex()[..32])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_system_of_this_run_calls_home() {
        let (machine, run) = (MachineId::fresh(), RunId::fresh());
        let http = "10.77.0.1:8080".parse().unwrap();
        let ours = PhoneHome::new([1; 32], http);
        let url = ours.url(machine, run);
        let token = url.strip_prefix("http://10.77.0.1:8080/phone-home/").unwrap();
        assert_eq!(ours.caller(token), Some((machine, run)));
        assert_eq!(PhoneHome::new([2; 32], http).caller(token), None);
        let tag = token.rsplit('.').next().unwrap();
        assert_eq!(ours.caller(&format!("{machine}.{}.{tag}", RunId::fresh())), None);
        assert_eq!(ours.caller(&format!("{token}.x")), None);
        assert_eq!(ours.caller(""), None);
    }
}
