//! Attacks on boot files by TFTP.

use std::{net::UdpSocket, sync::atomic::Ordering, thread, time::Duration};

use anyhow::{Context, ensure};

use super::{
    intruder::{node_mac, towards, under},
    range::{LEAD, Machine, NODE, Range},
    wire::{Card, udp},
};

/// Sends a datagram to TFTP's port; the first answer, if one comes soon.
fn tftp(request: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(700)))?;
    socket.send_to(request, (NODE, 69))?;
    let mut buffer = [0; 2000];
    Ok(socket.recv_from(&mut buffer).ok().map(|(len, from)| {
        // So that no transfer stays behind.
        let _ = socket.send_to(&[0, 5, 0, 0, 0], from);
        buffer[..len].to_vec()
    }))
}

pub(super) fn names(_: &mut Range) -> anyhow::Result<String> {
    let names: &[&[u8]] = &[
        b"../snponly.efi",
        b"..\\snponly.efi",
        b"../../../../etc/passwd",
        b"..\\..\\..\\etc\\passwd",
        b"%2e%2e/etc/passwd",
        b"%2e%2e%2fetc%2fpasswd",
        b"/etc/passwd",
        b"//etc/passwd",
        b"C:\\boot.ini",
        b"/usr/lib/ipxe/snponly.efi",
        b"./snponly.efi",
        b"boot.key",
        b"",
        b".",
        b"..",
        b"/",
        b"\xff\xff\xff",
        b"\xc3\x28",
        b"snponly.efi\x01",
        b"snponly.efi%00",
        b"\xef\xbc\x8e\xef\xbc\x8e/snponly.efi",
    ];
    Machine::Intruder.acts(|| {
        for name in names {
            let answer = tftp(&[&[0, 1], *name, b"\0octet\0"].concat())?;
            let answer = answer.with_context(|| format!("no answer to {name:?}"))?;
            ensure!(answer.starts_with(&[0, 5]), "{:?} was answered {answer:?}", String::from_utf8_lossy(name));
        }
        // A name that ends early is the name before its end; padding is none.
        let answer = tftp(b"\0\x01snponly.efi\xff\xff\0octet\0")?.context("no answer to a padded name")?;
        ensure!(answer.starts_with(&[0, 3]), "a padded name was answered {answer:?}");
        Ok(format!("{} names", names.len()))
    })
}

pub(super) fn refusals(_: &mut Range) -> anyhow::Result<String> {
    let long = [&b"\0\x01snponly.efi\0octet\0"[..], &[b'x'; 600], &[0]].concat();
    let huge = [&b"\0\x01"[..], &[b'f'; 8000], b"\0octet\0"].concat();
    let refused: &[&[u8]] = &[
        b"\0\x02snponly.efi\0octet\0",
        b"\0\x01snponly.efi\0",
        b"\0\x01snponly.efi\0netascii\0",
        b"\0\x01snponly.efi\0mail\0",
        b"\0\x01snponly.efi",
        &long,
        &huge,
    ];
    let ignored: &[&[u8]] = &[b"", b"\0", b"\0\0", b"\0\x03\0\x01x", b"\0\x04\0\x01", b"\0\x05\0\x08", b"\xff\xff\0\0"];
    Machine::Intruder.acts(|| {
        for request in refused {
            let answer =
                tftp(request)?.with_context(|| format!("no answer to {:?}", &request[..20.min(request.len())]))?;
            ensure!(answer.starts_with(&[0, 5]), "{request:?} was answered {answer:?}");
        }
        for packet in ignored {
            let answer = tftp(packet)?;
            ensure!(answer.is_none(), "{packet:?} was answered {answer:?}");
        }
        Ok(format!("{} datagrams", refused.len() + ignored.len()))
    })
}

pub(super) fn other_senders(_: &mut Range) -> anyhow::Result<String> {
    Machine::Intruder.acts(|| {
        let (client, other) = (UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("0.0.0.0:0")?);
        client.set_read_timeout(Some(Duration::from_millis(700)))?;
        client.send_to(b"\0\x01snponly.efi\0octet\0", (NODE, 69))?;
        let mut buffer = [0; 2000];
        let (_, transfer) = client.recv_from(&mut buffer).context("no first block")?;
        // Another sender's acknowledgements, errors and requests are not the client's.
        for packet in [&[0, 4, 0, 1][..], &[0, 5, 0, 8, 0], b"\0\x01snponly.efi\0octet\0"] {
            other.send_to(packet, transfer)?;
        }
        for _ in 0..5 {
            client.send_to(&[0, 4, 0, 1], transfer)?;
        }
        let mut seen = Vec::new();
        while let Ok((len, from)) = client.recv_from(&mut buffer) {
            ensure!(from == transfer && len == 516, "{len} bytes from {from}");
            seen.push(buffer[3]);
        }
        ensure!(seen == [2], "five acknowledgements of block 1 brought blocks {seen:?}");
        client.send_to(&[0, 5, 0, 8, 0], transfer)?;
        client.set_read_timeout(Some(Duration::from_millis(1500)))?;
        ensure!(client.recv_from(&mut buffer).is_err(), "a transfer that was broken off goes on");
        Ok(String::new())
    })
}

pub(super) fn starvation(range: &mut Range) -> anyhow::Result<String> {
    let node = node_mac(range)?;
    range.boots_during(LEAD, |over| {
        let card = Card::open("net0")?;
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            // As many at once as there are places, from many addresses, each to be kept long.
            for number in 0..400 {
                let request = b"\0\x01undionly.kpxe\0octet\0timeout\x003\0blksize\x001468\0";
                card.send(&udp(towards(node, sent * 400 + number, 69), request));
            }
            sent += 1;
            thread::sleep(Duration::from_millis(200));
        }
        Ok(format!("{} forged requests", sent * 400))
    })
}

pub(super) fn flood(range: &mut Range) -> anyhow::Result<String> {
    let node = node_mac(range)?;
    under(range, move |_, number| {
        let request: &[u8] = match number % 4 {
            0 => b"\0\x01snponly.efi\0octet\0",
            1 => b"\0\x01nothing\0octet\0",
            2 => b"\0\x02snponly.efi\0octet\0",
            _ => b"\0\x04\0\x01",
        };
        udp(towards(node, number, 69), request)
    })
}
