//! The honest clients of a rack node, as a machine on its way from its ROM to an admitted
//! installer runs them; an intruder uses the same.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use rackhand_common::{
    channel::Present,
    machine::Mac,
    pki::{self, KeyPin},
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use uuid::Uuid;

use super::{
    range::{CHANNEL, HTTP, Machine, NODE, PATIENCE},
    wire::{Answer, Card, EVERYONE, Ends, dhcp, udp},
};

/// The neighbour's whole way: address, loader, script, admitted installer. How long it took.
pub(super) fn boots() -> anyhow::Result<Duration> {
    Machine::Neighbour.acts(|| {
        let start = Instant::now();
        let end = start + PATIENCE;
        let address = obtain(&Card::open("net0")?, Machine::Neighbour.mac(), end)?.context("no address")?;
        ensure!(address == Machine::Neighbour.address(), "it was given {address}");
        let loader = fetch("snponly.efi", end).context("no loader")?;
        ensure!(loader == fs::read("/usr/lib/ipxe/snponly.efi")?, "the loader is another");
        let script = until(end, script).context("no script")?;
        let (status, body) = until(end, || Installer::fresh(&script)?.present(&script)).context("no channel")?;
        ensure!(status == 200, "its installer is refused: {status} {body}");
        Ok(start.elapsed())
    })
}

/// Does it again until it works, as machines do.
pub(super) fn until<T>(end: Instant, mut act: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    loop {
        match act() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A DHCP client from DISCOVER to ACK, which asks again every second.
pub(super) fn obtain(card: &Card, mac: Mac, end: Instant) -> anyhow::Result<Option<Ipv4Addr>> {
    let transaction = Uuid::new_v4().as_fields().0;
    let rom: &[u8] = b"\x3c\x20PXEClient:Arch:00007:UNDI:003000";
    let ask = |options: &[&[u8]]| udp(from_client(mac), &dhcp(mac, transaction, Ipv4Addr::UNSPECIFIED, options));
    let answered = |kind: u8| {
        move |frame: &[u8]| {
            Answer::read(frame)
                .filter(|answer| answer.mac == mac && answer.transaction == transaction && answer.kind == kind)
        }
    };
    let again = || (Instant::now() + Duration::from_secs(1)).min(end);
    while Instant::now() < end {
        card.send(&ask(&[&[53, 1, 1], rom]));
        let Some(offer) = card.find(again(), answered(2))? else { continue };
        let chosen = [&[53, 1, 3, 54, 4][..], &NODE.octets(), &[50, 4], &offer.address.octets()].concat();
        card.send(&ask(&[&chosen, rom]));
        if let Some(bound) = card.find(again(), answered(5))? {
            return Ok(Some(bound.address));
        }
    }
    Ok(None)
}

pub(super) fn from_client(mac: Mac) -> Ends {
    let (from, to) = ((Ipv4Addr::UNSPECIFIED, 68), (Ipv4Addr::BROADCAST, 67));
    Ends { source: mac, destination: EVERYONE, from, to }
}

/// The neighbour's boot script, with a ticket in it.
pub(super) fn script() -> anyhow::Result<String> {
    let (status, script) = ask("GET", &format!("/boot.ipxe?mac={}", Machine::Neighbour.mac()))?;
    ensure!(status == 200 && script.contains("rackhand.ticket="), "{status} {script}");
    Ok(script)
}

/// The value of a parameter of the kernel's in a boot script.
pub(super) fn parameter<'a>(script: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let (_, rest) = script.split_once(&format!("rackhand.{name}=")).with_context(|| format!("no {name}: {script}"))?;
    rest.split_whitespace().next().context("an empty parameter")
}

/// A TFTP client that takes blocks of an Ethernet frame's size.
pub(super) fn fetch(name: &str, end: Instant) -> anyhow::Result<Vec<u8>> {
    'again: loop {
        ensure!(Instant::now() < end, "it took too long");
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.send_to(format!("\0\x01{name}\0octet\0blksize\01468\0").as_bytes(), (NODE, 69))?;
        let (mut content, mut buffer) = (Vec::new(), [0; 2000]);
        loop {
            let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue 'again };
            match buffer[..len] {
                [0, 6, ..] => drop(socket.send_to(&[0, 4, 0, 0], from)?),
                [0, 3, high, low, ref data @ ..] => {
                    let number = u16::from_be_bytes([high, low]);
                    if usize::from(number) == content.len() / 1468 + 1 {
                        content.extend_from_slice(data);
                    }
                    socket.send_to(&[0, 4, high, low], from)?;
                    if data.len() < 1468 {
                        return Ok(content);
                    }
                }
                // Busy: to be asked again.
                [0, 5, 0, 0, ..] => {
                    thread::sleep(Duration::from_millis(100));
                    continue 'again;
                }
                _ => bail!("the answer is {:?}", String::from_utf8_lossy(&buffer[..len])),
            }
        }
    }
}

/// A TCP connection from this address to a port of the node.
pub(super) fn connect(from: Ipv4Addr, port: u16) -> anyhow::Result<TcpStream> {
    connect_to(from, SocketAddrV4::new(NODE, port))
}

/// A TCP connection from this address.
pub(super) fn connect_to(from: Ipv4Addr, to: SocketAddrV4) -> anyhow::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(3))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket.into())
}

/// One HTTP request; status and body.
pub(super) fn ask(method: &str, path: &str) -> anyhow::Result<(u16, String)> {
    ask_from(Ipv4Addr::UNSPECIFIED, method, path)
}

pub(super) fn ask_from(from: Ipv4Addr, method: &str, path: &str) -> anyhow::Result<(u16, String)> {
    converse(connect(from, HTTP)?, method, path, "")
}

pub(super) fn converse(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    body: &str,
) -> anyhow::Result<(u16, String)> {
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: boot\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    stream.flush()?;
    let said = read(&mut stream)?;
    let said = String::from_utf8_lossy(&said);
    let (head, body) = said.split_once("\r\n\r\n").with_context(|| format!("no answer: {said:?}"))?;
    let status = head.split_whitespace().nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// What comes until the other side closes, at most a megabyte; an end without goodbye is one.
pub(super) fn read(stream: &mut impl Read) -> anyhow::Result<Vec<u8>> {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while said.len() < 1 << 20 {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => said.extend_from_slice(&buffer[..len]),
            Err(_) if !said.is_empty() => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(said)
}

/// Someone on the installers' channel: a key, and what boot's key should be.
pub(super) struct Installer {
    tls: Arc<rustls::ClientConfig>,
}

impl Installer {
    /// With a key of its own, for the boot that wrote this script.
    pub(super) fn fresh(script: &str) -> anyhow::Result<Self> {
        let pin: KeyPin = parameter(script, "pin")?.parse().map_err(|_| anyhow!("no pin"))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(rcgen::KeyPair::generate()?.serialize_der()));
        Ok(Self { tls: Arc::new(pki::installer_client(pin, key)?) })
    }

    pub(super) fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
        let tcp = connect(Ipv4Addr::UNSPECIFIED, CHANNEL)?;
        let session = rustls::ClientConnection::new(self.tls.clone(), ServerName::try_from("boot")?)?;
        converse(rustls::StreamOwned::new(session, tcp), method, path, body)
    }

    /// Presents the script's ticket for the script's card.
    pub(super) fn present(&self, script: &str) -> anyhow::Result<(u16, String)> {
        let mac = parameter(script, "mac")?.parse()?;
        self.present_as(parameter(script, "ticket")?, mac)
    }

    pub(super) fn present_as(&self, ticket: &str, mac: Mac) -> anyhow::Result<(u16, String)> {
        let present = Present { ticket: ticket.to_owned(), mac, uuid: None };
        self.ask("POST", "/v1/ticket", &serde_json::to_string(&present)?)
    }

    /// Whether it has a session.
    pub(super) fn admitted(&self) -> anyhow::Result<bool> {
        Ok(self.ask("GET", "/v1/assignment", "")?.0 == 200)
    }
}
