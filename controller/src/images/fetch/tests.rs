use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use rackhand_common::image::Settings;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    images::{Config, Images, tests::Still},
    store::{NewImage, Store},
};

const QUICK: Patience = Patience {
    connect: Duration::from_secs(5),
    stall: Duration::from_millis(300),
    window: Duration::from_millis(500),
    least: 1000,
    whole: Duration::from_secs(4),
};

/// Answers every connection by `answer`, which is given the path that was asked for.
async fn server<F: Future<Output = ()> + Send + 'static>(
    answer: impl Fn(String, TcpStream) -> F + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap() > 0 {}
            let path = String::from_utf8_lossy(&request).split(' ').nth(1).unwrap_or_default().to_owned();
            tokio::spawn(answer(path, stream));
        }
    });
    port
}

/// What became of fetching `url`: the file, or why there is none.
async fn fetched(url: &str, sources: &[&str], limit: u64) -> Result<Vec<u8>, ImportError> {
    rackhand_common::pki::install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let seal = rackhand_common::seal::Seal::new(&[7; 32]);
    let store = Store::open(&dir.path().join("controller.db"), seal).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let new = NewImage { name: "it", settings: Settings::None, os: None };
    let id = tx.start_import(jiff::Timestamp::UNIX_EPOCH, &new, "fetching", 0).await.unwrap();
    tx.commit().await.unwrap();
    let config = Config::below(dir.path());
    let sign: crate::images::Sign = Arc::new(<[u8]>::to_vec);
    let images = Images::open(config, store, sign, Arc::new(Still), CancellationToken::new()).await.unwrap();
    let sources: Vec<Source> = sources.iter().map(|source| source.parse().unwrap()).collect();
    let to = dir.path().join("fetched");
    let mut progress = Progress::new(&images, id, "fetching", 0);
    fetch(parse(url)?, &sources, &to, limit, QUICK, &mut progress).await?;
    Ok(std::fs::read(to).unwrap())
}

async fn refused(url: &str, sources: &[&str]) -> FetchError {
    match fetched(url, sources, 1 << 20).await {
        Err(ImportError::Fetch(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn addresses_that_point_inwards_are_known_in_every_spelling() {
    for (address, is_inward) in [
        ("1.1.1.1", false),
        ("172.15.255.255", false),
        ("172.32.0.1", false),
        ("2606:4700::1111", false),
        ("64:ff9b::101:101", false),
        ("0.0.0.0", true),
        ("127.1.2.3", true),
        ("10.0.0.1", true),
        ("172.16.0.1", true),
        ("192.168.255.255", true),
        ("100.64.0.1", true),
        ("169.254.1.1", true),
        ("198.18.0.1", true),
        ("224.0.0.1", true),
        ("255.255.255.255", true),
        ("::", true),
        ("::1", true),
        ("fe80::1", true),
        ("fc00::1", true),
        ("fec0::1", true),
        ("ff02::1", true),
        ("::ffff:127.0.0.1", true),
        ("::ffff:10.0.0.1", true),
        ("::10.0.0.1", true),
        ("64:ff9b::7f00:1", true),
        ("2002:7f00:1::", true),
        ("100::1", true),
    ] {
        let checked = check("host", address.parse().unwrap(), &[]);
        assert_eq!(matches!(checked, Err(FetchError::Inward { .. })), is_inward, "{address}: {checked:?}");
    }
}

#[test]
fn what_is_configured_is_allowed_and_credentials_never_are() {
    let sources: Vec<Source> = ["10.1.0.0/16", "fd00::/8", "Images.Lab", "169.254.0.0/16"]
        .iter()
        .map(|source| source.parse().unwrap())
        .collect();
    let may = |host: &str, address: &str| check(host, address.parse().unwrap(), &sources).is_ok();
    assert!(may("x", "10.1.2.3") && may("x", "::ffff:10.1.2.3") && may("x", "fd00::1"));
    assert!(may("images.lab", "192.168.0.1") && may("images.lab.", "127.0.0.1"));
    assert!(!may("x", "10.2.0.1") && !may("other.lab", "192.168.0.1"));
    for metadata in ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200"] {
        assert!(!may("images.lab", metadata), "{metadata}");
    }
    for bad in ["", "a b", "http://x", "10.0.0.0/40", "x..y"] {
        assert!(bad.parse::<Source>().is_err(), "{bad}");
    }
}

#[test]
fn only_plain_urls_are_read() {
    let long = format!("https://example.net/{}", "x".repeat(MAX_URL));
    for bad in
        ["", "file:///etc/shadow", "ftp://example.net/x", "https://", "https://me:secret@example.net/", "x", &long]
    {
        assert!(parse(bad).is_err(), "{bad}");
    }
    assert!(parse("https://example.net/x?y").is_ok());
}

#[tokio::test]
async fn a_host_within_is_refused_before_it_is_connected_to() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let port = server(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {}
    })
    .await;
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"] {
        let error = refused(&format!("http://{host}:{port}/"), &[]).await;
        assert!(matches!(error, FetchError::Inward { .. }), "{host}: {error:?}");
    }
    let error = refused("http://169.254.169.254/latest/meta-data", &["0.0.0.0/0"]).await;
    assert!(matches!(error, FetchError::Metadata { .. }), "{error:?}");
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_file_is_fetched_and_its_length_counts() {
    let port = server(|path, mut stream| async move {
        let body = vec![7u8; 100_000];
        let len = if path == "/short" { body.len() + 1 } else { body.len() };
        let head = match path.as_str() {
            "/endless" => "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
            "/absent" => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
            _ => format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n"),
        };
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&body).await;
        while path == "/endless" && stream.write_all(&body).await.is_ok() {}
    })
    .await;
    let url = |path: &str| format!("http://localhost:{port}{path}");
    let local = ["localhost"];
    assert_eq!(fetched(&url("/"), &local, 1 << 20).await.unwrap(), vec![7; 100_000]);
    let at = format!("http://127.0.0.1:{port}/");
    assert_eq!(fetched(&at, &["127.0.0.0/8"], 1 << 20).await.unwrap(), vec![7; 100_000]);
    assert!(matches!(fetched(&url("/"), &local, 99_999).await, Err(ImportError::TooLarge { size: 100_000, .. })));
    let endless = fetched(&url("/endless"), &local, 1 << 20).await;
    assert!(matches!(endless, Err(ImportError::TooLarge { .. })), "{endless:?}");
    assert!(matches!(refused(&url("/short"), &local).await, FetchError::Broken { .. }));
    assert!(matches!(refused(&url("/absent"), &local).await, FetchError::Status { status: 404, .. }));
}

#[tokio::test]
async fn redirects_are_bounded_and_looked_at_like_the_first_url() {
    let port = server(|path, mut stream| async move {
        let hops: usize = path.trim_start_matches('/').parse().unwrap_or_default();
        let answer = match path.as_str() {
            "/inward" => "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.2/\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "/metadata" => {
                "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n".to_owned()
            }
            "/file" => "HTTP/1.1 301 Moved\r\nlocation: file:///etc/shadow\r\ncontent-length: 0\r\n\r\n".to_owned(),
            _ if hops > 0 => {
                format!("HTTP/1.1 307 Temporary\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", hops - 1)
            }
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nit".to_owned(),
        };
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let url = |path: &str| format!("http://localhost:{port}{path}");
    let local = ["localhost"];
    assert_eq!(fetched(&url("/5"), &local, 1000).await.unwrap(), b"it");
    assert!(matches!(refused(&url("/6"), &local).await, FetchError::Redirects));
    assert!(matches!(refused(&url("/inward"), &local).await, FetchError::Inward { .. }));
    assert!(matches!(refused(&url("/metadata"), &local).await, FetchError::Metadata { .. }));
    assert!(matches!(refused(&url("/file"), &local).await, FetchError::Url(_)));
}

#[tokio::test]
async fn a_server_that_stands_still_or_drips_is_given_up() {
    let port = server(|path, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        // Either forever; the other side ends it.
        while path == "/drips" && stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    let url = |path: &str| format!("http://localhost:{port}{path}");
    assert!(matches!(refused(&url("/still"), &["localhost"]).await, FetchError::Broken { .. }));
    let dripping = refused(&url("/drips"), &["localhost"]).await;
    assert!(matches!(dripping, FetchError::Slow { least: 1000, .. }), "{dripping:?}");
}
