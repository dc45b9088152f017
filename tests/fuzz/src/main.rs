//! Every parser of foreign bytes, under a coverage-guided fuzzer: `cargo xtask fuzz` builds and
//! runs this, once for each target, which it names in `RACKHAND_FUZZ`. Built without the
//! feature `fuzzer` it replays the corpora, and the inputs in the files it is given.

#![cfg_attr(feature = "fuzzer", no_main)]

#[path = "../../../controller/src/images/layout.rs"]
mod layout;
#[path = "../../../controller/src/images/qcow2.rs"]
mod qcow2;
mod targets;
#[path = "../../../controller/src/images/vmdk.rs"]
mod vmdk;

use targets::{TARGETS, Target};

/// The target of this run.
fn target() -> Target {
    let name = std::env::var("RACKHAND_FUZZ").unwrap_or_default();
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let names = || TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    found.unwrap_or_else(|| panic!("RACKHAND_FUZZ names a target, one of: {}", names())).1
}

#[cfg(feature = "fuzzer")]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static TARGET: std::sync::OnceLock<Target> = std::sync::OnceLock::new();
    TARGET.get_or_init(target)(bytes);
});

#[cfg(not(feature = "fuzzer"))]
fn main() -> std::io::Result<()> {
    let files: Vec<_> = std::env::args_os().skip(1).map(std::path::PathBuf::from).collect();
    if !files.is_empty() {
        return files.iter().try_for_each(|file| std::fs::read(file).map(|bytes| target()(&bytes)));
    }
    let corpora = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let mut count = 0;
        for file in std::fs::read_dir(corpora.join(name))? {
            target(&std::fs::read(file?.path())?);
            count += 1;
        }
        println!("{name}: {count} inputs");
    }
    Ok(())
}
