//! Attacks on plain HTTP, and on the installers' channel below the sessions.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::ensure;
use rackhand_common::id::{MachineId, RunId};
use uuid::Uuid;

use super::{
    client::{self, Installer, ask, connect, read},
    intruder::{half_open, tcp_flood},
    range::{CHANNEL, FLOOD, HTTP, Machine, Range},
};

pub(super) fn forged_calls(_: &mut Range) -> anyhow::Result<String> {
    let (machine, run) = (MachineId::fresh(), RunId::fresh());
    let tag = "0".repeat(32);
    let long = "a".repeat(8000);
    let tokens = [
        format!("{machine}.{run}.{tag}"),
        format!("{machine}.{run}."),
        format!("{machine}.{run}"),
        format!("{machine}..{tag}"),
        "..".into(),
        "%2e%2e%2f".into(),
        "%00".into(),
        long,
    ];
    Machine::Intruder.acts(|| {
        for token in &tokens {
            let (status, said) = ask("POST", &format!("/phone-home/{token}"))?;
            ensure!(status == 404, "{token:.60}: {status} {said}");
        }
        for path in [
            "/latest/meta-data/",
            "/openstack/latest/user_data",
            "/metadata",
            "/v1/assignment",
            "/v1/ticket",
            "/state",
            "/boot.key",
            "/../boot.key",
        ] {
            let (status, said) = ask("GET", path)?;
            ensure!((400..500).contains(&status), "{path}: {status} {said}");
        }
        Ok(String::new())
    })
}

/// Names of chunks that nobody ordered are no work for anyone but boot.
pub(super) fn made_up_chunks(range: &mut Range) -> anyhow::Result<String> {
    let asked = Machine::Intruder.acts(|| {
        let start = Instant::now();
        let mut asked = 0;
        while start.elapsed() < FLOOD / 2 {
            let digest = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
            let (status, said) = ask("GET", &format!("/chunks/{digest}"))?;
            ensure!(status == 503, "{digest}: {status} {said}");
            asked += 1;
        }
        Ok(asked)
    })?;
    // It would say so when it asked the agent, which is not there.
    ensure!(!range.log()?.contains("cannot be served"), "made-up chunks were asked of the agent");
    Ok(format!("{asked} names"))
}

pub(super) fn malformed(_: &mut Range) -> anyhow::Result<String> {
    let header = format!("GET /healthz HTTP/1.1\r\nhost: boot\r\nx: {}\r\n\r\n", "a".repeat(4 << 20));
    let headers = format!("GET /healthz HTTP/1.1\r\nhost: boot\r\n{}\r\n", "x: y\r\n".repeat(100_000));
    let line = format!("GET /{} HTTP/1.1\r\nhost: boot\r\n\r\n", "a".repeat(1 << 20));
    let body = format!(
        "POST /phone-home/x HTTP/1.1\r\nhost: boot\r\ncontent-length: 9999999999\r\n\r\n{}",
        "b".repeat(4 << 20)
    );
    let chunked = "POST /phone-home/x HTTP/1.1\r\nhost: boot\r\ntransfer-encoding: chunked\r\n\r\n";
    let sick: Vec<Vec<u8>> = [
        header.as_str(),
        &headers,
        &line,
        &body,
        &format!("{chunked}ffffffffffffffff\r\nx"),
        &format!("{chunked}fffffffffffffffff\r\nx"),
        &format!("{chunked}-1\r\nx"),
        &format!("{chunked}{}", "1\r\nx\r\n".repeat(100_000)),
        "POST /phone-home/x HTTP/1.1\r\nhost: boot\r\ncontent-length: 18446744073709551616\r\n\r\n",
        "POST /phone-home/x HTTP/1.1\r\nhost: boot\r\ncontent-length: -1\r\n\r\n",
        "POST /phone-home/x HTTP/1.1\r\nhost: boot\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "GET /healthz HTTP/9.9\r\n\r\n",
        "GET /healthz\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: boot\r\nx\0y: z\r\n\r\n",
        "GET http://other/healthz HTTP/1.1\r\n\r\n",
        "CONNECT 10.77.0.1:22 HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: boot\r\nconnection: close\r\n\r\n",
        "\r\n\r\n\r\n",
        "\u{16}\u{3}\u{1}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    let zeros = "0".repeat(63);
    let digests = [
        "x",
        "..",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%00",
        &zeros,
        &format!("{zeros}Z"),
        &format!("{zeros}00"),
        &format!("{zeros}%30%30"),
    ];
    Machine::Intruder.acts(|| {
        for request in &sick {
            let mut stream = connect(Machine::Intruder.address(), HTTP)?;
            stream.set_read_timeout(Some(Duration::from_millis(300)))?;
            // Boot may hang up before it has read all of it.
            let _ = stream.write_all(request);
            let said = read(&mut stream).unwrap_or_default();
            let shown = String::from_utf8_lossy(&request[..request.len().min(60)]);
            ensure!(said.len() < 64 << 10, "{} bytes in answer to {shown:?}", said.len());
            ensure!(
                !said.starts_with(b"HTTP/1.1 5"),
                "{shown:?} is said to be boot's fault: {}",
                String::from_utf8_lossy(&said)
            );
        }
        for digest in digests {
            let (status, said) = ask("GET", &format!("/chunks/{digest}"))?;
            ensure!((400..500).contains(&status), "/chunks/{digest}: {status} {said}");
        }
        Ok(format!("{} requests", sick.len() + digests.len()))
    })
}

pub(super) fn garbled_handshakes(_: &mut Range) -> anyhow::Result<String> {
    let hello = |length: u16| [&[0x16, 0x03, 0x01][..], &length.to_be_bytes(), &[1, 0, 255, 255, 3, 3]].concat();
    let sick: Vec<Vec<u8>> = vec![
        vec![],
        vec![0; 100_000],
        vec![0xff; 100_000],
        b"GET / HTTP/1.1\r\nhost: boot\r\n\r\n".to_vec(),
        hello(0),
        hello(1),
        hello(0xffff),
        [hello(0x4000), vec![0; 0x4000]].concat(),
        // Endless empty records, and endless pieces of one handshake message.
        [0x16, 3, 3, 0, 0].repeat(20_000),
        [0x16, 3, 3, 0, 1, 1].repeat(20_000),
        // Alerts, early application data.
        [0x15, 3, 3, 0, 2, 1, 0].repeat(5_000),
        [0x17, 3, 3, 0, 1, 0].repeat(5_000),
        (0..50_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
    ];
    let script = Machine::Neighbour.acts(client::script)?;
    Machine::Intruder.acts(|| {
        for bytes in &sick {
            let mut stream = connect(Machine::Intruder.address(), CHANNEL)?;
            stream.set_read_timeout(Some(Duration::from_millis(300)))?;
            let _ = stream.write_all(bytes);
            let said = read(&mut stream).unwrap_or_default();
            ensure!(said.len() < 4096, "{} bytes in answer to garbage", said.len());
        }
        // A good handshake, and then bodies that are not what they should be.
        let nobody = Installer::fresh(&script)?;
        let nested = "[".repeat(20_000);
        let long = format!(r#"{{"ticket":"{}"}}"#, "a".repeat(900_000));
        for body in ["", "{", "null", "{}", nested.as_str(), long.as_str(), r#"{"ticket":1,"mac":"x"}"#, "\u{0}"] {
            let (status, said) = nobody.ask("POST", "/v1/ticket", body)?;
            ensure!((400..500).contains(&status), "{body:.20}: {status} {said}");
        }
        Ok(format!("{} garbled connections", sick.len()))
    })
}

pub(super) fn half_open_requests(range: &mut Range) -> anyhow::Result<String> {
    half_open(range, HTTP, b"GET /boot.ipxe HTTP/1.1\r\nx: ", b"y")
}

pub(super) fn half_open_handshakes(range: &mut Range) -> anyhow::Result<String> {
    half_open(range, CHANNEL, &[0x16, 3, 1, 2, 0], &[1])
}

pub(super) fn flood(range: &mut Range) -> anyhow::Result<String> {
    tcp_flood(range, HTTP, b"GET /kernel HTTP/1.1\r\nhost: boot\r\nconnection: close\r\n\r\n")
}

pub(super) fn channel_flood(range: &mut Range) -> anyhow::Result<String> {
    tcp_flood(range, CHANNEL, &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0])
}
