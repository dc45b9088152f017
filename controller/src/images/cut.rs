//! Cuts a raw image into compressed chunks: one thread reads and hashes the whole, as many as
//! there are cores compress, and the chunks come out in order.

use std::{fs::File, io::Read, num::NonZero, thread};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use rackhand_common::image::{CHUNK, Digest};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task};
use zstd::zstd_safe::CParameter;

use super::ImportError;

/// zstd's level of every chunk; part of what makes equal imports share chunks.
pub(super) const LEVEL: i32 = 3;

/// One piece of the image, in order.
pub(super) enum Piece {
    /// This many zero bytes.
    Zeros(u64),
    /// Bytes, compressed.
    Data {
        /// How many they were.
        raw: u64,
        digest: Digest,
        compressed: Bytes,
    },
    /// After the last: SHA-256 of everything, hexadecimal.
    End(String),
}

enum Raw {
    Zeros(u64),
    Data(Vec<u8>),
    End(String),
}

/// The pieces of `file`, which is read from its start for exactly `size` bytes.
pub(super) fn cut(file: File, size: u64) -> impl Stream<Item = Result<Piece, ImportError>> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    // One chunk read ahead of those being compressed; a full queue stops the reader.
    let (send, mut receive) = mpsc::channel(1);
    task::spawn_blocking(move || {
        if let Err(error) = read(file, size, &send) {
            // Nobody listens when the import was given up; then there is nobody to tell.
            let _ = send.blocking_send(Err(error));
        }
    });
    futures_util::stream::poll_fn(move |cx| receive.poll_recv(cx))
        .map(|raw| async {
            match raw? {
                Raw::Zeros(len) => Ok(Piece::Zeros(len)),
                Raw::End(sha256) => Ok(Piece::End(sha256)),
                Raw::Data(bytes) => {
                    task::spawn_blocking(move || compress(&bytes)).await.map_err(|_| ImportError::Stopped)?
                }
            }
        })
        .buffered(cores)
}

fn read(mut file: File, size: u64, send: &mpsc::Sender<Result<Raw, ImportError>>) -> Result<(), ImportError> {
    let mut whole = Sha256::new();
    let mut left = size;
    while left > 0 {
        let len = left.min(CHUNK);
        let mut bytes = vec![0; len as usize];
        file.read_exact(&mut bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => ImportError::Truncated { has: size - left, needs: size },
            _ => ImportError::Read(error),
        })?;
        whole.update(&bytes);
        left -= len;
        // Sixteen bytes at a time, which the compiler turns into wide compares.
        let (wide, rest) = bytes.as_chunks::<16>();
        let zero = wide.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0) && rest.iter().all(|&byte| byte == 0);
        let raw = if zero { Raw::Zeros(len) } else { Raw::Data(bytes) };
        if send.blocking_send(Ok(raw)).is_err() {
            return Ok(());
        }
    }
    let _ = send.blocking_send(Ok(Raw::End(hex::encode(whole.finalize()))));
    Ok(())
}

fn compress(bytes: &[u8]) -> Result<Piece, ImportError> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(ImportError::Compress)?;
    // The decoder, on another machine, then proves to itself what it decoded.
    compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(ImportError::Compress)?;
    let compressed = compressor.compress(bytes).map_err(ImportError::Compress)?;
    Ok(Piece::Data { raw: bytes.len() as u64, digest: Digest::of(&compressed), compressed: compressed.into() })
}
