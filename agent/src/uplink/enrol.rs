//! Exchanging a one-time code for a certificate.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use rackhand_common::{
    pki::{self, CONTROLLER_NAME, KeyPin},
    wire::{self, AgentRequest, AgentResponse},
};
use rcgen::{CertificateParams, KeyPair};
use tokio::time::timeout;

use super::identity::Registration;

/// The controller's port for agents, and of its API, unless told otherwise.
const PORT: u16 = 4433;
const API_PORT: u16 = 8443;

const PATIENCE: Duration = Duration::from_secs(15);

/// Makes this node's key, exchanges the code for a certificate and keeps both. An earlier
/// registration is replaced only when that has succeeded. `controller` is `HOST[:PORT]`;
/// `api` likewise, the same host when absent.
pub async fn enrol(state: &Path, controller: &str, api: Option<&str>, code: &str) -> Result<Registration> {
    let (secret, root) = parse(code)?;
    let controller = with_port(controller, PORT)?;
    let host = controller.rsplit_once(':').map_or(controller.as_str(), |(host, _)| host);
    let api = with_port(api.unwrap_or(host), API_PORT)?;
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let response = timeout(PATIENCE, ask(&controller, root, AgentRequest::Enrol { secret, csr }))
        .await
        .with_context(|| format!("{controller} does not answer: is it the controller's address for agents (UDP)?"))??;
    match response {
        AgentResponse::Certificate { agent, rack, chain, bundle } => {
            let registration = Registration::of((controller, api), (agent, rack), chain, key.serialize_der(), &bundle)?;
            registration.save(state)?;
            Ok(registration)
        }
        AgentResponse::Refused(reason) => bail!("the controller refused: {reason}"),
        other => bail!("the controller gave an answer that does not fit: {other:?}"),
    }
}

/// The secret and the root's pin of `RH1.SECRET.PIN`.
fn parse(code: &str) -> Result<(String, KeyPin)> {
    let parts: Vec<&str> = code.trim().split('.').collect();
    let ["RH1", secret, root] = parts[..] else {
        bail!(
            "this is not an enrolment code: it has the form RH1.….…; ask for one with `rackhand agent enrol --rack NAME`"
        )
    };
    let root = root.parse().ok().context("the enrolment code is cut off or mistyped: its last part has 64 digits")?;
    Ok((secret.to_owned(), root))
}

/// `HOST:PORT`; an IPv6 address stands in brackets.
fn with_port(host: &str, port: u16) -> Result<String> {
    if host.is_empty() {
        bail!("the controller's address is empty");
    }
    let has_port =
        host.rsplit_once(':').is_some_and(|(host, port)| port.parse::<u16>().is_ok() && !host.contains("::"));
    Ok(if has_port || host.parse::<SocketAddr>().is_ok() { host.to_owned() } else { format!("{host}:{port}") })
}

async fn ask(controller: &str, root: KeyPin, request: AgentRequest) -> Result<AgentResponse> {
    let address = resolve(controller).await?;
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(pki::enrol_client(root)?)?;
    let endpoint = quinn::Endpoint::client(any(address))?;
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connection = endpoint.connect_with(config, address, CONTROLLER_NAME)?.await.context("cannot connect")?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&wire::encode(&request)).await?;
    send.finish()?;
    let response = wire::decode(&receive.read_to_end(wire::MAX_LEN).await?)?;
    connection.close(0u32.into(), b"enrolled");
    endpoint.wait_idle().await;
    Ok(response)
}

/// The first address of `HOST:PORT`.
pub(super) async fn resolve(controller: &str) -> Result<SocketAddr> {
    let mut found =
        tokio::net::lookup_host(controller).await.with_context(|| format!("cannot resolve {controller}"))?;
    found.next().with_context(|| format!("{controller} has no address"))
}

/// Any local address of the same family.
pub(super) fn any(peer: SocketAddr) -> SocketAddr {
    if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_taken_apart_and_a_mistyped_one_is_named() {
        let pin = KeyPin([7; 32]);
        assert_eq!(parse(&format!(" RH1.secret.{pin}\n")).unwrap(), ("secret".to_owned(), pin));
        for bad in ["", "RH1", "RH2.secret.00", "RH1.secret.abcd"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_the_code_parser(text in "\\PC{0,200}", secret in "[^.]{0,40}", pin in "\\PC{0,80}") {
            let _ = (parse(&text), parse(&format!("RH1.{secret}.{pin}")), with_port(&text, PORT));
        }
    }

    #[test]
    fn a_controllers_port_may_be_left_out() {
        for (given, expected) in [
            ("ctl.example.net", "ctl.example.net:4433"),
            ("ctl.example.net:99", "ctl.example.net:99"),
            ("10.0.0.1", "10.0.0.1:4433"),
            ("[2001:db8::1]", "[2001:db8::1]:4433"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
        ] {
            assert_eq!(with_port(given, PORT).unwrap(), expected);
        }
    }
}
