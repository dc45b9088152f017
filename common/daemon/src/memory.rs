//! What a process has in its memory: keys, tokens, users' data.

use std::io;

/// From now on this process leaves no core dump, whatever the system's limits and its collector
/// of dumps are, and no process of its own user looks into it. Root may still trace it.
pub fn close() -> io::Result<()> {
    nix::sys::prctl::set_dumpable(false).map_err(Into::into)
}
