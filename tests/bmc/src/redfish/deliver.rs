//! Delivery of events (DSP0266 section 12.5): each entry of the event log is posted to whoever
//! subscribed, again when nobody takes it.
//!
//! A destination's certificate is not looked at, as BMCs do unless told otherwise.

use std::{io, sync::Arc, time::Duration};

use jiff::Timestamp;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs::default_provider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use crate::{Bmc, sensor::Health};

/// As the service says (`DeliveryRetryAttempts`, `DeliveryRetryIntervalSeconds`).
pub(super) const ATTEMPTS: u32 = 3;
pub(super) const INTERVAL: Duration = Duration::from_secs(30);

/// How soon an entry is posted.
const SOON: Duration = Duration::from_millis(50);

/// How long a destination may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Posts events until it is dropped.
pub(crate) async fn run(bmc: Arc<Bmc>) {
    let (mut posted, mut deliveries) = (0, JoinSet::new());
    loop {
        sleep(SOON).await;
        while deliveries.try_join_next().is_some() {}
        for (destination, event) in due(&bmc, &mut posted) {
            deliveries.spawn(deliver(destination, event));
        }
    }
}

/// What is to be posted where since the entry that was posted last.
fn due(bmc: &Bmc, posted: &mut u16) -> Vec<(String, Value)> {
    let state = bmc.lock();
    let newest = state.log.records().last().map_or(0, |record| record.id());
    // The log was cleared: its numbers begin anew.
    *posted = (*posted).min(newest);
    if state.is_silent(Timestamp::now()) {
        return Vec::new();
    }
    let since = std::mem::replace(posted, newest);
    let fresh: Vec<_> = state.log.records().iter().filter(|record| record.id() > since).collect();
    let mut due = Vec::new();
    for record in fresh {
        for (_, destination, context) in &state.subscriptions {
            let severity = match record.health() {
                Health::Ok => "OK",
                Health::Warning => "Warning",
                Health::Critical => "Critical",
            };
            let event = json!({
                "@odata.type": "#Event.v1_7_0.Event", "Id": record.id().to_string(), "Name": "Event Array",
                "Context": context,
                "Events": [{
                    "MemberId": "0", "EventId": record.id().to_string(), "EventType": "Alert",
                    "EventTimestamp": Timestamp::now().to_string(), "MessageId": "Platform.1.0.PlatformError",
                    "Message": record.message(), "MessageSeverity": severity, "Severity": severity,
                }],
            });
            due.push((destination.clone(), event));
        }
    }
    due
}

async fn deliver(destination: String, event: Value) {
    for attempt in 0..=ATTEMPTS {
        if attempt > 0 {
            sleep(INTERVAL).await;
        }
        match timeout(PATIENCE, post(&destination, &event)).await {
            Ok(Ok(200..=299)) => return,
            other => tracing::debug!(destination, ?other, "an event is not taken"),
        }
    }
}

/// Posts an event; the status of the answer.
async fn post(destination: &str, event: &Value) -> io::Result<u16> {
    let bad = || io::Error::other("no such destination");
    let (scheme, rest) = destination.split_once("://").ok_or_else(bad)?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let stream = TcpStream::connect(host).await?;
    let body = event.to_string();
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nOData-Version: 4.0\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    if scheme == "http" {
        return exchange(stream, &request).await;
    }
    let provider = Arc::new(default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    exchange(TlsConnector::from(Arc::new(config)).connect(name, stream).await?, &request).await
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> io::Result<u16> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let status = std::str::from_utf8(&head[9..]).ok().and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::Error::other("no HTTP"))
}

/// Takes whatever certificate is shown.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
