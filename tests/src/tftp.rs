//! A TFTP client (RFC 1350, 2347, 2348, 2349) as UEFI firmware is: it asks for the size
//! first and breaks off, then fetches.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{net::UdpSocket, time::timeout};

const PATIENCE: Duration = Duration::from_secs(1);
const BLOCK: usize = 1468;

/// The file from the server, asked for from this address.
pub async fn fetch(from: Ipv4Addr, server: SocketAddrV4, file: &str) -> Result<Vec<u8>> {
    let size = size(from, server, file).await?;
    let socket = UdpSocket::bind((from, 0)).await?;
    let request = [b"\0\x01", file.as_bytes(), b"\0octet\0blksize\0", BLOCK.to_string().as_bytes(), b"\0"].concat();
    socket.send_to(&request, server).await?;
    let (answer, peer) = receive(&socket).await?;
    ensure!(answer.starts_with(&[0, 6]), "no acknowledgement of options: {answer:?}");
    let mut whole = Vec::new();
    let mut next: u16 = 0;
    loop {
        socket.send_to(&[&[0, 4], &next.to_be_bytes()[..]].concat(), peer).await?;
        next = next.wrapping_add(1);
        let (block, sender) = receive(&socket).await?;
        ensure!(sender == peer, "a block from another transfer");
        let data = block.strip_prefix(&[0, 3]).context("not a block")?;
        let (number, data) = data.split_at_checked(2).context("a block without a number")?;
        ensure!(number == next.to_be_bytes(), "block {number:?} instead of {next}");
        whole.extend_from_slice(data);
        if data.len() < BLOCK {
            socket.send_to(&[&[0, 4], &next.to_be_bytes()[..]].concat(), peer).await?;
            ensure!(whole.len() == size, "{} bytes came, {size} were announced", whole.len());
            return Ok(whole);
        }
    }
}

async fn size(from: Ipv4Addr, server: SocketAddrV4, file: &str) -> Result<usize> {
    let socket = UdpSocket::bind((from, 0)).await?;
    let request = [b"\0\x01", file.as_bytes(), b"\0octet\0tsize\x000\0"].concat();
    socket.send_to(&request, server).await?;
    let (answer, peer) = receive(&socket).await?;
    let options = answer.strip_prefix(&[0, 6]).context("no acknowledgement of options")?;
    let words: Vec<_> = options.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    socket.send_to(b"\0\x05\0\x08only the size\0", peer).await?;
    let at = words.iter().position(|word| word.eq_ignore_ascii_case("tsize")).context("no size")?;
    Ok(words.get(at + 1).context("no size")?.parse()?)
}

async fn receive(socket: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 2048];
    let (len, peer) = timeout(PATIENCE, socket.recv_from(&mut buffer)).await.context("the server is silent")??;
    buffer.truncate(len);
    if buffer.starts_with(&[0, 5]) {
        bail!("the server refuses: {}", String::from_utf8_lossy(&buffer[4..]));
    }
    Ok((buffer, peer))
}
