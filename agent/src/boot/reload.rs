//! Boot's configuration while it runs: what of another one is taken over at once, and what needs
//! a restart. Transfers and answers under way go on with what they began with.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use rackhand_daemon::{Log, Taken};
use tokio::sync::watch;

use super::{Config, chunks::Chunks, http::ServedFile, media::Media, tftp, toolbox::Toolbox};

/// The configuration in use; clones are the same.
#[derive(Clone, Debug)]
pub struct Settings {
    used: Arc<Mutex<Config>>,
    tftp: watch::Sender<tftp::Files>,
    kernel: ServedFile,
    initramfs: ServedFile,
    toolbox: Toolbox,
    media: Media,
    chunks: Chunks,
}

impl Settings {
    pub(super) fn new(
        config: Config,
        tftp: watch::Sender<tftp::Files>,
        kernel: ServedFile,
        initramfs: ServedFile,
        toolbox: Toolbox,
        media: Media,
        chunks: Chunks,
    ) -> Self {
        Self { used: Arc::new(Mutex::new(config)), tftp, kernel, initramfs, toolbox, media, chunks }
    }

    /// Takes over of this configuration what can be without a restart.
    pub fn take_over(&self, fresh: &Config) -> Taken {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Taken::default();
        // A setting that is added is decided on here.
        let Config {
            state,
            socket,
            interface,
            address,
            http,
            channel,
            tftp,
            tftp_port,
            media,
            lease,
            installer,
            cache,
            management,
            log,
        } = fresh;
        if taken.take("tftp", &mut used.tftp, tftp) {
            self.tftp.send_replace(tftp.clone());
        }
        if taken.take("media", &mut used.media, media) {
            self.media.become_file(media.clone());
        }
        if taken.take("installer", &mut used.installer, installer) {
            self.kernel.become_file(installer.kernel.clone());
            self.initramfs.become_file(installer.initramfs.clone());
            self.toolbox.become_file(installer.toolbox.clone());
        }
        if taken.take("cache", &mut used.cache, cache) {
            self.chunks.hold(*cache);
        }
        taken.take("log", &mut used.log, log);
        taken.keep("state", &used.state, state);
        taken.keep("socket", &used.socket, socket);
        taken.keep("interface", &used.interface, interface);
        taken.keep("address", &used.address, address);
        taken.keep("http", &used.http, http);
        taken.keep("channel", &used.channel, channel);
        taken.keep("tftp_port", &used.tftp_port, tftp_port);
        taken.keep("lease", &used.lease, lease);
        taken.keep("management", &used.management, management);
        taken
    }

    /// Reads a configuration and takes it over; one that cannot be read changes nothing.
    pub(super) fn reload(&self, load: &impl Fn() -> Result<Config>, log: &Log) -> Result<Taken> {
        let fresh = load()?;
        log.take(&fresh.log);
        Ok(self.take_over(&fresh))
    }
}
