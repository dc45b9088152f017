//! Builds, demonstrates, tests and measures Rackhand.

use std::path::PathBuf;

use clap::Parser;

mod installer_image;
mod os_image;

#[derive(Parser)]
#[command(about)]
enum Task {
    /// Makes the installer's kernel, initramfs and manifest.
    InstallerImage {
        /// Directory they are put in.
        #[arg(long, default_value = "target/installer-image")]
        out: PathBuf,
        /// Directory for what is downloaded.
        #[arg(long, default_value = "target/cache")]
        cache: PathBuf,
    },
    /// Makes a Debian 12 image for machines. Needs root.
    OsImage {
        /// The image's file.
        #[arg(long, default_value = "target/debian-12.raw")]
        out: PathBuf,
        /// Directory to work in.
        #[arg(long, default_value = "target/cache")]
        cache: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::InstallerImage { out, cache } => installer_image::build(&out, &cache),
        Task::OsImage { out, cache } => os_image::build(&out, &cache),
    }
}
