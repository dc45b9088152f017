//! Fetches an image from a URL that an operator gave, from nowhere the operator could not have
//! reached: the controller stands in networks that its callers do not.
//!
//! Invariants:
//! - Of each host, redirects' too, all addresses are looked at before one is connected to, and
//!   only those that were looked at are: a name that answers otherwise the next time changes
//!   nothing.
//! - Addresses that point inwards are refused unless `images.sources` names their prefix or
//!   host; those at which clouds hand out credentials always are.
//! - Whatever the other side does, it ends: by length, by time, by standing still, by dripping.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    str::FromStr,
    time::Duration,
};

use futures_util::StreamExt as _;
use ipnet::IpNet;
use reqwest::{Client, Response, Url, header, redirect};
use tokio::{io::AsyncWriteExt as _, net::lookup_host, time::Instant};

use super::{ImportError, Progress};

/// How many redirects are followed.
const REDIRECTS: usize = 5;

/// The longest URL.
pub(crate) const MAX_URL: usize = 2048;

/// How long the other side may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a name, and for a connection.
    pub(super) connect: Duration,
    /// Without a byte.
    pub(super) stall: Duration,
    /// In this time at least [`Patience::least`] bytes come.
    pub(super) window: Duration,
    /// See [`Patience::window`].
    pub(super) least: u64,
    /// For all of it.
    pub(super) whole: Duration,
}

impl Patience {
    /// 64 GiB in the six hours want 3 MB/s, and what comes at less than 4 KiB/s is no download.
    pub(super) const USUAL: Self = Self {
        connect: Duration::from_secs(15),
        stall: Duration::from_secs(30),
        window: Duration::from_secs(60),
        least: 256 << 10,
        whole: Duration::from_secs(6 * 3600),
    };
}

/// A place images may be fetched from although its address points inwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Addresses.
    Prefix(IpNet),
    /// A host by this name, wherever it is.
    Host(String),
}

/// The text is neither a prefix nor a host.
#[derive(Debug, thiserror::Error)]
#[error("neither a prefix (10.0.0.0/8) nor a host name (images.example.net)")]
pub struct NotASource;

impl FromStr for Source {
    type Err = NotASource;

    fn from_str(text: &str) -> Result<Self, NotASource> {
        if let Ok(prefix) = text.parse::<IpNet>() {
            return Ok(Self::Prefix(prefix.trunc()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Prefix(address.into()));
        }
        let host = text.to_ascii_lowercase();
        let label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if host.split('.').all(label) { Ok(Self::Host(host)) } else { Err(NotASource) }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => prefix.fmt(f),
            Self::Host(host) => host.fmt(f),
        }
    }
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FetchError {
    #[error(
        "`{0}` is no URL that images are fetched from: it begins with https:// or http://, has a host and no password"
    )]
    Url(String),
    #[error("{0} redirects from https to http")]
    Downgrade(String),
    #[error("it redirects more than {REDIRECTS} times")]
    Redirects,
    #[error("{host} cannot be resolved: {reason}")]
    Unknown { host: String, reason: String },
    #[error(
        "{host} is at {address}, which is {what}; images.sources in the controller's configuration may allow its \
         prefix or host"
    )]
    Inward { host: String, address: IpAddr, what: &'static str },
    #[error("{host} is at {address}, where clouds hand out credentials; nothing is fetched from there")]
    Metadata { host: String, address: IpAddr },
    #[error("{host} answered {status}")]
    Status { host: String, status: u16 },
    #[error("{host} cannot be reached, or broke off")]
    Broken { host: String, source: reqwest::Error },
    #[error("{host} sent less than {least} bytes in {seconds} seconds")]
    Slow { host: String, least: u64, seconds: u64 },
    #[error("it took longer than {0} seconds")]
    Late(u64),
}

/// Reads a URL as it may be fetched.
pub(crate) fn parse(text: &str) -> Result<Url, FetchError> {
    let refused = || FetchError::Url(text.chars().take(200).collect());
    let url = Url::parse(text).ok().filter(|_| text.len() <= MAX_URL).ok_or_else(refused)?;
    let plain = matches!(url.scheme(), "https" | "http")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none();
    if plain { Ok(url) } else { Err(refused()) }
}

/// Fetches what is at `url` into the new file `to`, `limit` bytes at most.
pub(super) async fn fetch(
    url: Url,
    sources: &[Source],
    to: &Path,
    limit: u64,
    patience: Patience,
    progress: &mut Progress<'_>,
) -> Result<(), ImportError> {
    let all = async {
        let response = open(url, sources, patience).await?;
        receive(response, to, limit, patience, progress).await
    };
    tokio::time::timeout(patience.whole, all).await.map_err(|_| FetchError::Late(patience.whole.as_secs()))?
}

/// Follows redirects to an answer with a body.
async fn open(mut url: Url, sources: &[Source], patience: Patience) -> Result<Response, FetchError> {
    for _ in 0..=REDIRECTS {
        let host = url.host_str().unwrap_or_default().to_owned();
        let addresses = resolve(&url, sources, patience.connect).await?;
        let client = Client::builder()
            // A proxy would resolve the name anew, and reach what we do not.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(patience.connect)
            .read_timeout(patience.stall)
            .resolve_to_addrs(&host, &addresses)
            .user_agent(concat!("rackhand-controller/", env!("CARGO_PKG_VERSION")))
            .build();
        let broken = |source| FetchError::Broken { host: host.clone(), source };
        let response = client.map_err(broken)?.get(url.clone()).send().await.map_err(broken)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let place = response.headers().get(header::LOCATION).and_then(|place| place.to_str().ok());
        let Some(place) = place.filter(|_| status.is_redirection()) else {
            return Err(FetchError::Status { host, status: status.as_u16() });
        };
        let next = url.join(place).map_err(|_| FetchError::Url(place.chars().take(200).collect()))?;
        let next = parse(next.as_str())?;
        if url.scheme() == "https" && next.scheme() != "https" {
            return Err(FetchError::Downgrade(host));
        }
        url = next;
    }
    Err(FetchError::Redirects)
}

/// The addresses of a URL's host, all of which may be connected to.
async fn resolve(url: &Url, sources: &[Source], patience: Duration) -> Result<Vec<SocketAddr>, FetchError> {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    let unknown = |reason: String| FetchError::Unknown { host: host.clone(), reason };
    let addresses: Vec<_> = match host.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, port)],
        Err(_) => tokio::time::timeout(patience, lookup_host((host.as_str(), port)))
            .await
            .map_err(|_| unknown("no answer in time".into()))?
            .map_err(|error| unknown(error.to_string()))?
            .collect(),
    };
    if addresses.is_empty() {
        return Err(unknown("it has no address".into()));
    }
    for address in &addresses {
        check(&host, address.ip(), sources)?;
    }
    Ok(addresses)
}

/// Whether this address of this host may be connected to.
fn check(host: &str, address: IpAddr, sources: &[Source]) -> Result<(), FetchError> {
    let real = inner(address);
    if METADATA.contains(&real) {
        return Err(FetchError::Metadata { host: host.into(), address });
    }
    let allowed = sources.iter().any(|source| match source {
        Source::Prefix(prefix) => prefix.contains(&real),
        Source::Host(name) => name.eq_ignore_ascii_case(host.trim_end_matches('.')),
    });
    match inward(real) {
        Some(what) if !allowed => Err(FetchError::Inward { host: host.into(), address, what }),
        _ => Ok(()),
    }
}

/// Where clouds tell a machine its credentials.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254)),
];

/// The IPv4 address that an IPv6 one stands for, where it does: mapped, compatible, NAT64, 6to4.
fn inner(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let pair = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => pair(high, low),
        [0, 0, 0, 0, 0, 0, 0, 0..=1] => address,
        [0, 0, 0, 0, 0, 0, high, low] => pair(high, low),
        [0x2002, high, low, ..] => pair(high, low),
        _ => address,
    }
}

/// What kind of address leads to this host or its own networks; none for one of the Internet.
fn inward(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            [0, ..] => Some("this host"),
            [127, ..] => Some("a loopback address"),
            [169, 254, ..] => Some("a link-local address"),
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("a private address (RFC 1918)"),
            [100, 64..=127, ..] => Some("a shared address (RFC 6598)"),
            [192, 0, 0, _] | [198, 18..=19, ..] | [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => {
                Some("an address of special purpose (RFC 6890)")
            }
            [224..=239, ..] => Some("a multicast address"),
            [240..=255, ..] => Some("a reserved address"),
            _ => None,
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Some("this host"),
            [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
            [0xfe80..=0xfebf, ..] => Some("a link-local address"),
            [0xfec0..=0xfeff, ..] | [0xfc00..=0xfdff, ..] => Some("a private address (RFC 4193)"),
            [0xff00..=0xffff, ..] => Some("a multicast address"),
            [0x2000..=0x3fff, ..] => None,
            _ => Some("an address of special purpose (RFC 6890)"),
        },
    }
}

async fn receive(
    response: Response,
    to: &Path,
    limit: u64,
    patience: Patience,
    progress: &mut Progress<'_>,
) -> Result<(), ImportError> {
    let host = response.url().host_str().unwrap_or_default().to_owned();
    let too_large = |size| ImportError::TooLarge { size, limit };
    if let Some(size) = response.content_length() {
        if size > limit {
            return Err(too_large(size));
        }
        progress.total = size;
    }
    let mut file = tokio::io::BufWriter::with_capacity(1 << 20, tokio::fs::File::create_new(to).await?);
    let mut body = response.bytes_stream();
    let (mut since, mut came) = (Instant::now(), 0);
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(|source| FetchError::Broken { host: host.clone(), source })?;
        let len = bytes.len() as u64;
        if progress.done + len > limit {
            return Err(too_large(progress.done + len));
        }
        came += len;
        if since.elapsed() >= patience.window {
            if came < patience.least {
                let seconds = patience.window.as_secs();
                return Err(FetchError::Slow { host, least: patience.least, seconds }.into());
            }
            (since, came) = (Instant::now(), 0);
        }
        file.write_all(&bytes).await?;
        progress.add(len).await?;
    }
    file.flush().await?;
    Ok(())
}

impl From<FetchError> for ImportError {
    fn from(error: FetchError) -> Self {
        Self::Fetch(error)
    }
}

#[cfg(test)]
mod tests;
