//! Everything a virtual rack needs, built or taken from the cache.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::{
    installer_image::{self, Flavour},
    os_image,
    shell::{Shell, cache, target},
    toolbox,
};

/// What was built, and where it lies.
pub(crate) struct Artefacts {
    /// The product's binaries.
    binaries: PathBuf,
    /// Kernel and initial RAM disk of the installer, and the toolbox.
    installer: PathBuf,
    /// A Debian 12 disk image.
    image: PathBuf,
}

/// Builds the binaries and makes the images; `with` are words more for cargo.
pub(crate) fn make(with: &[&str]) -> anyhow::Result<Artefacts> {
    make_in("debug", with)
}

/// The same, optimised: for measuring.
pub(crate) fn make_released() -> anyhow::Result<Artefacts> {
    make_in("release", &["--release"])
}

/// What builds all binaries; `with` are words more for cargo.
pub(crate) fn binaries(with: &[&str]) -> Shell {
    // The whole workspace: a selection of packages has other features of its dependencies, and
    // all of them would be compiled again.
    Shell::new(&[&["cargo", "build", "--workspace", "--bins"], with].concat())
}

fn make_in(directory: &str, with: &[&str]) -> anyhow::Result<Artefacts> {
    println!("   building the binaries");
    binaries(with).run()?;
    let (installer, image) = (cache().join("installer"), cache().join("debian-12.raw"));
    println!("   making the installer image");
    installer_image::build(Flavour::Cloud, false, &installer).context("making the installer image")?;
    println!("   making the toolbox (some minutes the first time)");
    toolbox::build(&installer, &cache()).context("making the toolbox")?;
    println!("   making a Debian 12 image (a minute or two the first time)");
    os_image::build(&image, &cache()).context("making the Debian 12 image")?;
    Ok(Artefacts { binaries: target().join(directory), installer, image })
}

impl Artefacts {
    /// The hostile neighbour, who needs no images.
    pub(crate) fn attack(&self) -> Shell {
        let vrack = self.binaries.join("rackhand-vrack");
        Shell::as_root(&[&vrack.to_string_lossy(), "attack"]).arg("--binaries").arg(&self.binaries)
    }

    /// The metal installer image, made now, on a virtual machine of servers' parts, beside the cloud one.
    pub(crate) fn metal(&self, without_firmware: bool) -> anyhow::Result<Shell> {
        let metal = cache().join(Flavour::Metal.directory());
        println!("   making the installer image for servers");
        installer_image::build(Flavour::Metal, without_firmware, &metal).context("making the metal installer image")?;
        let Self { binaries, installer: cloud, image } = self;
        let vrack = binaries.join("rackhand-vrack");
        let shell = Shell::as_root(&[&vrack.to_string_lossy(), "metal"]);
        let words: [(&str, &Path); 4] =
            [("--binaries", binaries), ("--installer", &metal), ("--image", image), ("--cloud", cloud)];
        Ok(words.into_iter().fold(shell, |shell, (word, path)| shell.arg(word).arg(path)))
    }

    /// The tests that run programs of the toolbox: they mount it.
    pub(crate) fn in_the_toolbox(&self) -> Shell {
        let path = format!("PATH={}", std::env::var("PATH").unwrap_or_default());
        let place = format!("RACKHAND_TOOLBOX={}", self.installer.join(toolbox::FILE).display());
        let test = ["cargo", "test", "--workspace", "--test", "real_toolbox"];
        Shell::as_root(&[&["env", &path, &place], &test[..]].concat())
    }

    /// A command of the virtual rack.
    pub(crate) fn rack(&self, verb: &str) -> Shell {
        let vrack = self.binaries.join("rackhand-vrack");
        Shell::as_root(&[&vrack.to_string_lossy(), verb])
            .arg("--binaries")
            .arg(&self.binaries)
            .arg("--installer")
            .arg(&self.installer)
            .arg("--image")
            .arg(&self.image)
    }
}
