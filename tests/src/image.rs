//! An operating system image small enough for tests: a partition table by sgdisk, boot code,
//! an EFI system partition with a loader, and a root file system of random bytes.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use rackhand_common::image::CHUNK;

/// Where firmware finds something to start: boot code for BIOS, a loader for UEFI.
pub const BOOT_CODE: &[u8] = b"\xeb\x63\x90SIMBOOT";
/// The first bytes of the EFI system partition.
pub const LOADER: &[u8] = b"SIMESP BOOTX64.EFI";
/// The first bytes of the root file system. The last bytes of the image repeat them: a
/// system starts only when it is whole.
pub const ROOT: &[u8] = b"SIMROOT 1";

/// Offset of the EFI system partition.
pub const ESP_AT: u64 = 1 << 20;
/// Offset of the root file system: within the second chunk.
pub const ROOT_AT: u64 = CHUNK + (1 << 20);

/// Makes a raw image of this many chunks, at least three. The last but one is a hole.
pub fn make(path: &Path, chunks: u64) -> Result<Vec<u8>> {
    ensure!(chunks >= 3, "an image here has at least three chunks");
    let size = chunks * CHUNK;
    fs::write(path, vec![0; usize::try_from(size)?])?;
    let sector = |at: u64| (at / 512).to_string();
    let esp = format!("1:{}:{}", sector(ESP_AT), (2 << 20) / 512 - 1);
    let root = format!("2:{}:{}", sector(ROOT_AT), (size - (1 << 20)) / 512 - 1);
    let made = Command::new("sgdisk")
        .args(["-n", &esp, "-t", "1:ef00", "-n", &root, "-t", "2:8304"])
        .arg(path)
        .output()
        .context("sgdisk does not start: is gdisk installed?")?;
    ensure!(made.status.success(), "sgdisk: {}", String::from_utf8_lossy(&made.stderr));
    let mut raw = fs::read(path)?;
    put(&mut raw, 0, BOOT_CODE);
    put(&mut raw, ESP_AT, LOADER);
    // Chunks that differ and do not compress to nothing.
    for chunk in (1..chunks).filter(|chunk| *chunk != chunks - 2) {
        let noise = uuid::Uuid::new_v4().into_bytes().repeat(1 << 10);
        put(&mut raw, chunk * CHUNK + (2 << 20), &noise);
    }
    put(&mut raw, ROOT_AT, ROOT);
    put(&mut raw, size - (1 << 20) - 512, ROOT);
    fs::write(path, &raw)?;
    Ok(raw)
}

fn put(raw: &mut [u8], at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).expect("images here fit into memory");
    raw[at..at + bytes.len()].copy_from_slice(bytes);
}
