//! Chunks and manifests from the controller's API, by the agent's certificate.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use rackhand_common::{
    channel::MAX_MANIFEST,
    image::{Digest, MAX_COMPRESSED, SignedManifest},
    pki::{self, CONTROLLER_NAME},
    wire::ALPN_OBJECTS,
};
use reqwest::{
    Client, Response, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt as _, sync::watch};

use super::identity::Registration;
use crate::local::{FetchError, Fetched, Source};

/// How long connecting, and how long one chunk may take.
const CONNECT: Duration = Duration::from_secs(5);
const FETCH: Duration = Duration::from_secs(60);

/// Fetches with whatever certificate the node has now.
pub struct Fetcher {
    registration: watch::Receiver<Arc<Registration>>,
    client: Mutex<Option<(Arc<Registration>, Client)>>,
}

impl Fetcher {
    /// Follows the registration through its renewals.
    pub fn new(registration: watch::Receiver<Arc<Registration>>) -> Self {
        Self { registration, client: Mutex::new(None) }
    }

    /// Begins to fetch this; nothing of its body was read.
    async fn begin(&self, kind: &str, digest: &str, within: Duration) -> Result<Response, FetchError> {
        let (registration, client) = self.client()?;
        let port = registration.api.rsplit_once(':').map_or("8443", |(_, port)| port);
        let url = format!("https://{CONTROLLER_NAME}:{port}/agents/v1/{kind}/{digest}");
        let response = client.get(url).timeout(within).send().await.map_err(unavailable)?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::NOT_FOUND => Err(FetchError::NotFound(format!("the controller has no {kind}/{digest}"))),
            status => Err(FetchError::Unavailable(format!("the controller answered {status}"))),
        }
    }

    async fn get(&self, kind: &str, digest: Digest, limit: usize) -> Result<Vec<u8>, FetchError> {
        let response = self.begin(kind, &digest.to_string(), FETCH).await?;
        let mut bytes = Vec::new();
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(unavailable)?;
            if bytes.len() + piece.len() > limit {
                return Err(FetchError::Unavailable(format!("the controller sent more than {limit} bytes")));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// A client with the present certificate; its connections are kept.
    fn client(&self) -> Result<(Arc<Registration>, Client), FetchError> {
        let registration = self.registration.borrow().clone();
        let mut kept = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, client)) = &*kept
            && *of == registration
        {
            return Ok((registration, client.clone()));
        }
        let client = build(&registration).map_err(|error| FetchError::Unavailable(format!("{error:#}")))?;
        *kept = Some((registration.clone(), client.clone()));
        Ok((registration, client))
    }
}

fn build(registration: &Registration) -> anyhow::Result<Client> {
    let tls = pki::agent_client(&registration.bundle, registration.identity(), &[b"http/1.1", ALPN_OBJECTS])?;
    Ok(Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Arc::new(Only(registration.api.clone())))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .build()?)
}

/// Every name is the controller's: what its certificate is checked for is [`CONTROLLER_NAME`],
/// whatever address it is reached at.
struct Only(String);

impl Resolve for Only {
    fn resolve(&self, _: Name) -> Resolving {
        let address = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn unavailable(error: reqwest::Error) -> FetchError {
    // The address in it is made up; what went wrong is in its causes.
    FetchError::Unavailable(format!("{:#}", anyhow::Error::from(error.without_url())))
}

impl Source for Fetcher {
    fn chunk(&self, digest: Digest) -> Fetched<'_, Vec<u8>> {
        Box::pin(async move {
            let bytes = self.get("chunks", digest, MAX_COMPRESSED).await?;
            if Digest::of(&bytes) == digest {
                Ok(bytes)
            } else {
                // TLS keeps bytes whole on their way: the controller's own copy is not.
                Err(FetchError::NotFound(format!("the controller's copy of chunk {digest} is damaged")))
            }
        })
    }

    fn manifest(&self, digest: Digest) -> Fetched<'_, SignedManifest> {
        Box::pin(async move {
            let bytes = self.get("manifests", digest, MAX_MANIFEST).await?;
            let key = self.registration.borrow().bundle.image_key();
            let trusted = serde_json::from_slice::<SignedManifest>(&bytes)
                .ok()
                .filter(|signed| signed.digest() == digest)
                .filter(|signed| key.is_ok_and(|key| signed.verify(&key).is_ok()));
            trusted.ok_or_else(|| FetchError::Unavailable(format!("manifest {digest} is not signed by the controller")))
        })
    }

    fn firmware<'a>(&'a self, sha256: &'a str, size: u64, to: &'a Path) -> Fetched<'a, ()> {
        Box::pin(async move {
            let kept = |error: std::io::Error| FetchError::Unavailable(format!("{}: {error}", to.display()));
            // A line of a megabit per second is the slowest that a rack is served over.
            let within = FETCH + Duration::from_secs(size >> 17);
            let mut body = self.begin("firmware", sha256, within).await?.bytes_stream();
            let mut file = tokio::fs::File::create(to).await.map_err(kept)?;
            let (mut hash, mut written) = (Sha256::new(), 0);
            while let Some(piece) = body.next().await {
                let piece = piece.map_err(unavailable)?;
                written += piece.len() as u64;
                if written > size {
                    break;
                }
                hash.update(&piece);
                file.write_all(&piece).await.map_err(kept)?;
            }
            file.flush().await.map_err(kept)?;
            if written == size && hex::encode(hash.finalize()) == sha256 {
                Ok(())
            } else {
                // TLS keeps bytes whole on their way: the controller's own copy is not.
                Err(FetchError::NotFound(format!(
                    "the controller's copy of firmware {sha256} is damaged: import it again"
                )))
            }
        })
    }
}
