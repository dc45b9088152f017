//! The controller's configuration while it runs: what of another one is taken over at once, and
//! what needs a restart.
//!
//! Connections, requests and imports under way go on with what they began with. A certificate
//! that is to be renewed is renewed here too, as at a start.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use rackhand_common::time::Clock;
use rackhand_daemon::Taken;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::{Config, Public};
use crate::{
    api::Rate,
    authority::Authority,
    certificates::{self, Certificates, certified},
    fleet,
    images::{self, Images},
    oidc::Oidc,
    webhooks::Webhooks,
};

/// The configuration in use; clones are the same.
#[derive(Clone)]
pub struct Settings(Arc<Mutex<Parts>>);

/// The configuration, and what of the process depends on it.
pub(super) struct Parts {
    pub(super) config: Config,
    /// The certificate in use.
    pub(super) certificate: CertificateDer<'static>,
    pub(super) authority: Arc<Authority>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) endpoint: quinn::Endpoint,
    pub(super) agents_port: u16,
    pub(super) certificates: Arc<Certificates>,
    pub(super) agents_address: watch::Sender<String>,
    pub(super) images: Images,
    pub(super) rate: Rate,
    pub(super) oidc: Oidc,
    pub(super) webhooks: Webhooks,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

impl Settings {
    pub(super) fn new(parts: Parts) -> Self {
        Self(Arc::new(Mutex::new(parts)))
    }

    /// Takes over of this configuration what can be without a restart.
    pub fn take_over(&self, fresh: &Config) -> Result<Taken> {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = &mut *parts;
        let (now, used) = (parts.clock.now().wall, &mut parts.config);
        // All that can fail comes first: a reload happens whole or not at all.
        let identity = parts.authority.controller(&fresh.names, now);
        let identity = identity.context("cannot make the controller's certificate")?;
        let certificate = identity.chain.first().cloned().context("a chain has a certificate")?;
        let ours = certified(identity.clone())?;
        let public = public(fresh)?;
        let server = fleet::server(&parts.authority, identity)?;
        let vouch = parts.oidc.take_over(fresh.oidc.as_ref())?;
        let tell = parts.webhooks.take_over(&fresh.webhooks)?;

        // A setting that is added is decided on here.
        let Config {
            data,
            names,
            server: database,
            api,
            requests_per_second,
            public: from,
            agents,
            agents_address,
            ssh,
            images,
            oidc,
            webhooks,
            log,
        } = fresh;
        // The other two lie below `data`.
        let images::Config { objects: _, spool: _, import, limit, sources } = images;
        let mut taken = Taken::default();
        taken.take("names", &mut used.names, names);
        if taken.take("certificate", &mut parts.certificate, &certificate) {
            parts.certificates.show_ours(ours);
            parts.endpoint.set_server_config(Some(server));
        }
        taken.take("agents.address", &mut used.agents_address, agents_address);
        parts.agents_address.send_replace(used.told_to_agents(parts.agents_port));
        taken.take("images.limit", &mut used.images.limit, limit);
        taken.take("images.sources", &mut used.images.sources, sources);
        // Below `data` as a rule, and then as little to be taken over as that.
        if used.data == *data {
            taken.take("images.import", &mut used.images.import, import);
        }
        taken.take("api.requests_per_second", &mut used.requests_per_second, requests_per_second);
        parts.rate.change(used.requests_per_second);
        // Files are shown as they are now, though they are called as before.
        match (&used.public, from) {
            (Public::Acme(_), _) | (_, Public::Acme(_)) => taken.keep("api.acme", &used.public, from),
            _ => {
                parts.certificates.show_public(public);
                taken.take("api.certificate", &mut used.public, from);
            }
        }
        parts.images.admit(used.images.limit, &used.images.import, &used.images.sources);
        taken.take("oidc", &mut used.oidc, oidc);
        vouch();
        // With secrets and certificates as they are now, though their files are called as before.
        taken.take("webhooks", &mut used.webhooks, webhooks);
        tell();
        taken.take("log", &mut used.log, log);
        taken.keep("data", &used.data, data);
        taken.keep("database", &used.server, database);
        taken.keep("api.listen", &used.api, api);
        taken.keep("agents.listen", &used.agents, agents);
        taken.keep("ssh.listen", &used.ssh, ssh);
        Ok(taken)
    }
}

/// What operators are shown by this configuration, as far as it is known now: what an authority
/// has issued comes by itself.
pub(super) fn public(config: &Config) -> Result<Option<Arc<CertifiedKey>>> {
    match &config.public {
        Public::Files(certificate, key) => {
            certificates::read(certificate, key, &config.names).context("cannot use `api.certificate`").map(Some)
        }
        Public::Ours | Public::Acme(_) => Ok(None),
    }
}
