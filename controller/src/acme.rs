//! A certificate by ACME (RFC 8555) for the names operators use, kept and renewed in time.
//!
//! The authority sees that the names are this controller's by connecting to them on port 443,
//! where the HTTPS port must be reachable (TLS-ALPN-01, RFC 8737).
//!
//! Invariants:
//! - What is kept is one file, chain and key, written atomically: they always belong together.
//! - Whatever fails here leaves the certificate in use as it is; our own is always there.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder,
    OrderStatus, RetryPolicy,
};
use jiff::{SignedDuration, Timestamp};
use rackhand_common::time::Clock;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{crypto::aws_lc_rs, sign::CertifiedKey};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    authority::replace,
    certificates::{Certificates, covers, read},
};

/// After a failure it is tried again so soon, then twice as late each time.
const AGAIN: Duration = Duration::from_secs(60);
/// At the latest after this: authorities count failures by the hour.
const AT_LATEST: Duration = Duration::from_secs(6 * 3600);

/// How long an authority may take to look and to issue.
const PATIENCE: Duration = Duration::from_secs(120);

/// Chain and key, below the directory.
const CERTIFICATE: &str = "certificate.pem";

/// `[api.acme]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// The authority's directory.
    pub directory: String,
    /// Whom it tells when something is wrong, as in `mailto:ops@example.net`.
    #[serde(default)]
    pub contact: Vec<String>,
    /// File with the root of the authority's own HTTPS, when it is no public one.
    pub ca: Option<PathBuf>,
}

/// Keeps a certificate for `names` below `dir`, until shutdown.
pub async fn run(
    acme: Acme,
    names: Vec<String>,
    dir: PathBuf,
    certificates: Arc<Certificates>,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let file = dir.join(CERTIFICATE);
    let mut pause = AGAIN;
    loop {
        let now = clock.now().wall;
        let kept = kept(&file, &names);
        if let Ok((certificate, _)) = &kept {
            certificates.show_public(Some(certificate.clone()));
        }
        let wait = match kept {
            Ok((_, renew)) if renew > now => Duration::try_from(renew.duration_since(now)).unwrap_or(AGAIN),
            _ => {
                let obtained = tokio::select! {
                    obtained = obtain(&acme, &names, &dir, &certificates) => obtained,
                    () = shutdown.cancelled() => return,
                };
                certificates.forget_proofs();
                match obtained {
                    Ok(()) => {
                        tracing::info!(names = names.join(", "), authority = acme.directory, "certificate obtained");
                        pause = AGAIN;
                        continue;
                    }
                    Err(error) => {
                        let error = format!("{error:#}");
                        let again = format!("{} s", pause.as_secs());
                        tracing::warn!(error, again, "no certificate by ACME; the one in use stays");
                        let wait = pause;
                        pause = (pause * 2).min(AT_LATEST);
                        wait
                    }
                }
            }
        };
        tokio::select! {
            // A clock that was set is noticed within a day.
            () = tokio::time::sleep(wait.min(Duration::from_secs(24 * 3600))) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// The certificate that is kept, and when it is to be renewed: after two thirds of its life.
fn kept(file: &Path, names: &[String]) -> Result<(Arc<CertifiedKey>, Timestamp)> {
    let certificate = read(file, file, names)?;
    ensure!(names.iter().all(|name| covers(&certificate, name)), "it is not for all names");
    let leaf = certificate.end_entity_cert()?;
    let (_, leaf) = X509Certificate::from_der(leaf)?;
    let (since, until) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    let renew = Timestamp::from_second(until)? - SignedDuration::from_secs((until - since) / 3);
    Ok((certificate, renew))
}

async fn obtain(acme: &Acme, names: &[String], dir: &Path, certificates: &Certificates) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))?;
    let account = account(acme, dir).await.context("no account with the authority")?;
    let identifiers: Vec<_> = names.iter().map(|name| Identifier::Dns(name.clone())).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await.context("the authority takes no order")?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            other => bail!("the authority considers an earlier proof {other:?}"),
        }
        let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
        let mut challenge = challenge.context("the authority does not offer TLS-ALPN-01")?;
        let name = match challenge.identifier().identifier {
            Identifier::Dns(name) => name.clone(),
            other => bail!("the authority asks for {other:?}, which was not ordered"),
        };
        certificates.prove(name.clone(), proof(&name, challenge.key_authorization().digest().as_ref())?);
        challenge.set_ready().await?;
    }
    let patience = RetryPolicy::new().timeout(PATIENCE);
    let status = order.poll_ready(&patience).await?;
    if status != OrderStatus::Ready {
        let mut why = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(authorization)) = authorizations.next().await {
            why.extend(
                authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref()?.detail.clone()),
            );
        }
        bail!("the authority could not see that the names are this controller's: {}", why.join("; "));
    }
    // A fresh key for each certificate.
    let key = KeyPair::generate()?;
    let request = CertificateParams::new(names.to_vec())?.serialize_request(&key)?;
    order.finalize_csr(request.der()).await?;
    let chain = order.poll_certificate(&patience).await.context("the authority issues nothing")?;
    replace(dir, CERTIFICATE, format!("{chain}\n{}", key.serialize_pem()).as_bytes())?;
    kept(&dir.join(CERTIFICATE), names).context("what the authority issued cannot be used")?;
    Ok(())
}

/// The account that is kept, or a fresh one.
async fn account(acme: &Acme, dir: &Path) -> Result<Account> {
    let builder = || -> Result<AccountBuilder> {
        Ok(match &acme.ca {
            Some(ca) => Account::builder_with_root(ca).with_context(|| format!("cannot use {}", ca.display()))?,
            None => Account::builder()?,
        })
    };
    // One for each authority: what it knows an account by is worth nothing to another.
    let file = format!("account-{}.json", hex::encode(&blake3::hash(acme.directory.as_bytes()).as_bytes()[..8]));
    match fs::read(dir.join(&file)) {
        Ok(text) => {
            let known: AccountCredentials = serde_json::from_slice(&text).context("the account is damaged")?;
            Ok(builder()?.from_credentials(known).await?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let contact: Vec<_> = acme.contact.iter().map(String::as_str).collect();
            let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
            let (account, credentials) = builder()?.create(&new, acme.directory.clone(), None).await?;
            replace(dir, &file, &serde_json::to_vec(&credentials)?)?;
            Ok(account)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {file}")),
    }
}

/// What is shown to the authority: a certificate of its own kind (RFC 8737, section 3).
fn proof(name: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>> {
    let key = KeyPair::generate()?;
    let mut wanted = CertificateParams::new(vec![name.to_owned()])?;
    wanted.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let made = wanted.self_signed(&key)?;
    // Unchecked: the mark of its kind is one that verifiers of other certificates refuse.
    let signs = aws_lc_rs::default_provider().key_provider.load_private_key(key.into())?;
    Ok(Arc::new(CertifiedKey::new(vec![made.der().clone()], signs)))
}
