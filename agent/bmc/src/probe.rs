//! Whether a BMC answers at an address, and what it says to anybody: Get Channel Authentication
//! Capabilities of IPMI (§22.13), and the service root of Redfish (DSP0266 §"Service root"). Neither
//! logs in, nor does either show a password.
//!
//! Two datagrams and one connection at most: management networks have slow devices in them, and
//! others that are no BMCs.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::{
    bmc::Credentials,
    ipmi::{
        device,
        packet::{self, Datagram, Malformed, Reader, Request},
    },
    redfish::{Bounds, Introduction, Redfish, Target, Which},
};

/// How often the datagram is sent.
const TRIES: u32 = 2;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);

/// How long a service may take to introduce itself.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// Network function and command of Get Channel Authentication Capabilities.
const CAPABILITIES: (u8, u8) = (0x06, 0x38);

/// A BMC that speaks IPMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeaksIpmi {
    /// Its maker, when it says.
    pub vendor: Option<&'static str>,
}

/// A BMC that speaks Redfish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeaksRedfish {
    /// What it says of itself.
    pub says: Introduction,
    /// SHA-256 of the certificate it shows, in hexadecimal.
    pub fingerprint: Option<String>,
}

/// Asks for IPMI there, each time waiting this long.
pub async fn ipmi(at: SocketAddr, wait: Duration) -> Option<SpeaksIpmi> {
    let any: SocketAddr = if at.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
    // Only its datagrams are taken from then on.
    socket.connect(at).await.ok()?;
    // For the present channel, with the extended capabilities of IPMI 2.0, as administrator.
    let asked = packet::plain(&Request::new(CAPABILITIES.0, CAPABILITIES.1, &[0x8e, 0x04]).message(0));
    let mut bytes = [0; 256];
    for _ in 0..TRIES {
        socket.send(&asked).await.ok()?;
        match timeout(wait, socket.recv(&mut bytes)).await {
            Ok(Ok(length)) => {
                if let Ok(speaks) = capabilities(&bytes[..length]) {
                    return Some(speaks);
                }
            }
            // Nobody listens there, as its system says.
            Ok(Err(_)) => return None,
            Err(_) => {}
        }
    }
    None
}

/// Reads the answer to Get Channel Authentication Capabilities.
pub fn capabilities(bytes: &[u8]) -> Result<SpeaksIpmi, Malformed> {
    let Datagram::Plain { payload } = packet::datagram(bytes)? else { return Err(Malformed("not what was asked for")) };
    let response = packet::response(payload)?;
    if (response.netfn, response.command) != (CAPABILITIES.0 | 1, CAPABILITIES.1) {
        return Err(Malformed("not what was asked for"));
    }
    // It is a BMC, also when it dislikes the question.
    let mut reader = Reader::new(&response.data);
    let maker = reader.array::<4>().and_then(|_| reader.array::<3>());
    let vendor = maker.ok().and_then(|[a, b, c]| device::manufacturer(u32::from_le_bytes([a, b, c, 0])));
    Ok(SpeaksIpmi { vendor })
}

/// Asks for Redfish there, over HTTPS.
pub async fn redfish(at: SocketAddr) -> Option<SpeaksRedfish> {
    // Most addresses have nobody at them, which is found out for less than a client of HTTPS costs.
    drop(timeout(CONNECT, TcpStream::connect(at)).await.ok()?.ok()?);
    let bounds = Bounds { shortest: INTRODUCTION, longest: INTRODUCTION, call: INTRODUCTION, ..Bounds::default() };
    let nobody = Credentials { user: String::new(), password: String::new().into() };
    let target =
        Target { url: format!("https://{at}"), credentials: nobody, fingerprint: None, system: Which::Only, bounds };
    let service = Redfish::new(target).ok()?;
    let says = timeout(INTRODUCTION, service.introduce()).await.ok()?.ok()?;
    Some(SpeaksRedfish { says, fingerprint: service.fingerprint().map(|fingerprint| fingerprint.to_string()) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer with this completion code and data.
    fn answer(netfn: u8, completion: u8, data: &[u8]) -> Vec<u8> {
        let head = [0x81, netfn << 2];
        let mut body = vec![0x20, 0, CAPABILITIES.1, completion];
        body.extend(data);
        let mut payload = head.to_vec();
        payload.push(packet::checksum(&head));
        payload.extend(&body);
        payload.push(packet::checksum(&body));
        packet::plain(&payload)
    }

    #[test]
    fn whoever_answers_is_a_bmc_and_may_say_who_made_it() {
        let read = |netfn, completion, data: &[u8]| capabilities(&answer(netfn, completion, data)).ok();
        assert_eq!(read(7, 0, &[1, 0x97, 4, 3, 0, 0, 0, 0]), Some(SpeaksIpmi { vendor: None }));
        assert_eq!(read(7, 0, &[1, 0x97, 4, 3, 0xa2, 0x02, 0, 0]), Some(SpeaksIpmi { vendor: Some("Dell") }));
        assert_eq!(read(7, 0xcc, &[]), Some(SpeaksIpmi { vendor: None }));
        assert_eq!(read(5, 0, &[1, 0x97, 4, 3, 0, 0, 0, 0]), None);
        assert!(capabilities(&[6, 0, 0xff, 7]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), completion: u8) {
            let _ = capabilities(&bytes);
            let _ = capabilities(&answer(7, completion, &bytes[..bytes.len().min(64)]));
        }
    }
}
