use std::{
    process::{self, Stdio},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request as HttpRequest, StatusCode},
};
use expect_test::{Expect, expect};
use http_body_util::BodyExt;
use jiff::Timestamp;
use rackhand_common::{
    id::{AgentId, RackId},
    pki::{Peer, Role},
    time::{Mono, Now},
};
use rustls_pki_types::CertificateDer;
use tower::ServiceExt;

use super::{
    layout::{ESP, tests::gpt},
    *,
};
use crate::store::{Image, ImageState};

struct Bench {
    directory: tempfile::TempDir,
    images: Images,
    store: Store,
    key: CertificateDer<'static>,
}

pub(super) struct Still;

impl Clock for Still {
    fn now(&self) -> Now {
        Now { mono: Mono(Duration::ZERO), wall: Timestamp::UNIX_EPOCH }
    }
}

/// A signer like the controller's image key, and its certificate.
fn signer() -> (Sign, CertificateDer<'static>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
    (Arc::new(move |bytes| rcgen::SigningKey::sign(&key, bytes).unwrap()), certificate.der().clone())
}

impl Bench {
    async fn new(limit: u64) -> Self {
        rackhand_common::pki::install_crypto();
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("controller.db"), rackhand_common::seal::Seal::new(&[7; 32]))
            .await
            .unwrap();
        let (sign, key) = signer();
        let config = Config { limit, ..Config::below(directory.path()) };
        let images =
            Images::open(config, store.clone(), sign, Arc::new(Still), CancellationToken::new()).await.unwrap();
        Self { directory, images, store, key }
    }

    /// A registered agent and its rack.
    async fn agent(&self) -> (RackId, AgentId) {
        let network = rackhand_common::intent::Network {
            node: "10.77.0.1/24".parse().unwrap(),
            gateway: None,
            dns: Vec::new(),
            delegated: ("10.77.0.100".parse().unwrap(), "10.77.0.150".parse().unwrap()),
        };
        let agent = AgentId::fresh();
        let mut tx = self.store.begin().await.unwrap();
        let rack = tx
            .insert_rack(Timestamp::UNIX_EPOCH, "r1", crate::store::DEFAULT_SITE, &network.try_into().unwrap())
            .await
            .unwrap();
        let key = rackhand_common::pki::KeyPin([0; 32]);
        tx.insert_agent(Timestamp::UNIX_EPOCH, agent, rack, key, Timestamp::UNIX_EPOCH).await.unwrap();
        tx.commit().await.unwrap();
        (rack, agent)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.directory.path().join("import").join(name), bytes).unwrap();
    }

    /// The image once its import has ended.
    async fn import(&self, name: &str, file: &str) -> Image {
        self.images.import_file(request(name), file).await.unwrap();
        self.ended(name).await
    }

    async fn ended(&self, name: &str) -> Image {
        // Background work is tracked: its end is the condition, no clock is asked.
        let wait = async {
            self.images.0.tracker.close();
            self.images.0.tracker.wait().await;
            self.images.0.tracker.reopen();
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
        self.store.image(name).await.unwrap()
    }

    fn qemu_img(&self, arguments: &[&str]) {
        let status = process::Command::new("qemu-img")
            .current_dir(self.directory.path().join("import"))
            .args(arguments)
            .stdout(Stdio::null())
            .status()
            .expect("these tests need qemu-img (Debian package qemu-utils)");
        assert!(status.success());
    }

    async fn manifest(&self, image: &Image) -> Manifest {
        let path = manifest_path(image.stored().unwrap().manifest);
        let signed = self.images.0.objects.get(&path).await.unwrap().bytes().await.unwrap();
        let signed: SignedManifest = serde_json::from_slice(&signed).unwrap();
        assert_eq!(signed.digest(), image.stored().unwrap().manifest);
        signed.verify(&self.key).unwrap()
    }

    /// The raw image put together again from what was stored.
    async fn raw(&self, manifest: &Manifest) -> Vec<u8> {
        let mut raw = Vec::new();
        for (index, chunk) in manifest.chunks.iter().enumerate() {
            let len = manifest.chunk_len(index);
            match chunk {
                None => raw.resize(raw.len() + len, 0),
                Some(chunk) => {
                    let object = self.images.0.objects.get(&chunk_path(chunk.digest)).await.unwrap();
                    let compressed = object.bytes().await.unwrap();
                    assert_eq!(Digest::of(&compressed), chunk.digest);
                    assert_eq!(compressed.len(), chunk.compressed as usize);
                    raw.extend(zstd::bulk::decompress(&compressed, len).unwrap());
                }
            }
        }
        raw
    }
}

fn request(name: &str) -> Request {
    Request { name: name.into(), settings: Settings::Cidata, firmware: None, os: None, sha256: None }
}

/// A bootable image of `sectors`: data at its beginning and end, a hole between.
fn disk(sectors: u64) -> Vec<u8> {
    let mut disk = gpt(512, sectors, &[ESP]);
    let len = disk.len();
    disk[len - 1000..].fill(7);
    disk
}

const MIB: usize = 1 << 20;

#[tokio::test]
async fn an_image_is_what_its_chunks_and_holes_say() {
    let bench = Bench::new(64 << 20).await;
    let bytes = disk(13 * 2048);
    bench.put("disk.raw", &bytes);
    let image = bench.import("debian", "disk.raw").await;
    let manifest = bench.manifest(&image).await;

    assert_eq!(bench.raw(&manifest).await, bytes);
    let shape: String = manifest.chunks.iter().map(|chunk| if chunk.is_some() { 'x' } else { '.' }).collect();
    assert_eq!(shape, "x..x");
    assert_eq!(manifest.size, 13 * MIB as u64);
    assert_eq!((manifest.sector, &manifest.firmware[..]), (512, &[Firmware::Uefi][..]));
    assert_eq!(manifest.sha256, hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes)));
    assert_eq!(manifest.image, image.id);
}

#[tokio::test]
async fn the_same_disk_as_raw_and_qcow2_shares_every_chunk() {
    let bench = Bench::new(64 << 20).await;
    bench.put("disk.raw", &disk(9 * 2048));
    bench.qemu_img(&["convert", "-c", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    let raw = bench.import("one", "disk.raw").await;
    let qcow2 = bench.import("two", "disk.qcow2").await;
    let (raw, qcow2) = (bench.manifest(&raw).await, bench.manifest(&qcow2).await);
    assert_eq!(raw.chunks, qcow2.chunks);
    assert_eq!(raw.sha256, qcow2.sha256);
    assert_eq!(bench.images.0.objects.list(Some(&ObjectPath::from("chunks"))).count().await, 2);
    assert_eq!(std::fs::read_dir(bench.directory.path().join("spool")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_object_that_was_damaged_is_put_right_by_the_next_import_that_has_it() {
    let bench = Bench::new(64 << 20).await;
    let bytes = disk(13 * 2048);
    bench.put("disk.raw", &bytes);
    let one = bench.import("one", "disk.raw").await;
    let manifest = bench.manifest(&one).await;
    let objects: Vec<_> = manifest.chunks.iter().flatten().map(|chunk| chunk_path(chunk.digest)).collect();
    let file = |object: &ObjectPath| bench.directory.path().join("objects").join(object.to_string());
    let whole: Vec<_> = objects.iter().map(|object| std::fs::read(file(object)).unwrap()).collect();
    // A flipped bit, and a file cut short.
    let [flipped, cut] = objects.as_slice() else { panic!("{objects:?}") };
    let mut bytes_of_one = whole[0].clone();
    bytes_of_one[17] ^= 4;
    std::fs::write(file(flipped), &bytes_of_one).unwrap();
    std::fs::write(file(cut), &whole[1][..10]).unwrap();

    bench.import("two", "disk.raw").await;
    assert_eq!(bench.raw(&manifest).await, bytes);
    assert_eq!(objects.iter().map(|object| std::fs::read(file(object)).unwrap()).collect::<Vec<_>>(), whole);
}

async fn check(limit: u64, prepare: impl AsyncFnOnce(&Bench), expected: Expect) {
    let bench = Bench::new(limit).await;
    prepare(&bench).await;
    let image = bench.import("it", "it").await;
    match image.state {
        ImageState::Failed { cause, detail } => expected.assert_eq(&format!("{cause}: {detail}")),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.images.0.objects.list(Some(&ObjectPath::from("manifests"))).count().await, 0);
}

#[tokio::test]
async fn an_empty_file_is_named_as_such() {
    check(1 << 20, async |bench| bench.put("it", b""), expect!["empty: the file is empty"]).await;
}

#[tokio::test]
async fn a_raw_image_that_was_cut_short_is_refused() {
    check(
        64 << 20,
        async |bench| bench.put("it", &disk(8192)[..MIB]),
        expect!["truncated: the image needs 4193792 bytes by its own account and has 1048576: it was cut short"],
    )
    .await;
}

#[tokio::test]
async fn a_qcow2_that_was_cut_short_is_refused() {
    check(
        64 << 20,
        async |bench| {
            bench.put("disk.raw", &disk(8192).iter().enumerate().map(|(i, b)| b ^ (i / 7) as u8).collect::<Vec<_>>());
            bench.qemu_img(&["convert", "-O", "qcow2", "disk.raw", "it"]);
            let path = bench.directory.path().join("import/it");
            let len = std::fs::metadata(&path).unwrap().len();
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len / 2).unwrap();
        },
        expect!["qcow2: qcow2: its tables are damaged, or it was cut short"],
    )
    .await;
}

#[tokio::test]
async fn an_image_beyond_the_limit_is_refused() {
    check(
        MIB as u64,
        async |bench| bench.put("it", &disk(4096)),
        expect![
            "too-large: the image has 2097152 bytes; this controller takes 1048576 (images.limit in its configuration)"
        ],
    )
    .await;
}

#[tokio::test]
async fn a_small_qcow2_of_a_huge_disk_is_refused_before_it_is_opened() {
    check(
        64 << 20,
        async |bench| bench.qemu_img(&["create", "-q", "-f", "qcow2", "it", "900G"]),
        expect!["too-large: the image has 966367641600 bytes; this controller takes 67108864 (images.limit in its configuration)"],
    )
    .await;
}

#[tokio::test]
async fn a_qcow2_that_names_a_backing_file_is_refused() {
    check(
        64 << 20,
        async |bench| {
            bench.put("secret", &disk(4096));
            bench.qemu_img(&["create", "-q", "-f", "qcow2", "-b", "secret", "-F", "raw", "it"]);
        },
        expect!["qcow2: qcow2: the file names a backing file; flatten it first (qemu-img convert)"],
    )
    .await;
}

#[tokio::test]
async fn a_qcow2_that_names_a_data_file_is_refused() {
    check(
        64 << 20,
        async |bench| bench.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "data_file=secret", "it", "1M"]),
        expect!["qcow2: qcow2: the file keeps its data in another file; flatten it first (qemu-img convert)"],
    )
    .await;
}

#[tokio::test]
async fn an_image_that_tells_no_firmware_needs_the_operators_word() {
    check(
        64 << 20,
        async |bench| bench.put("it", &[1; 4096]),
        expect![
            "no-firmware: nothing in the image's partition table says how it boots; say it yourself with `firmware`"
        ],
    )
    .await;
    let bench = Bench::new(64 << 20).await;
    bench.put("it", &[1; 4096]);
    let told = Request { firmware: Some(vec![Firmware::Bios]), ..request("it") };
    bench.images.import_file(told, "it").await.unwrap();
    assert_eq!(bench.ended("it").await.stored().unwrap().firmware, [Firmware::Bios]);
}

#[tokio::test]
async fn a_part_of_a_sector_is_refused() {
    check(
        64 << 20,
        async |bench| bench.put("it", &disk(64)[..64 * 512 - 100]),
        expect!["not-sectors: the image's 32668 bytes are not a whole number of 512-byte sectors"],
    )
    .await;
}

#[tokio::test]
async fn only_plain_files_of_the_import_directory_are_read() {
    let bench = Bench::new(64 << 20).await;
    std::fs::write(bench.directory.path().join("key.pem"), "secret").unwrap();
    std::os::unix::fs::symlink("../key.pem", bench.directory.path().join("import/link")).unwrap();
    for file in ["", ".", "..", "../key.pem", "/etc/passwd", "link", "absent", "a\0b"] {
        let refused = bench.images.import_file(request("it"), file).await;
        assert!(matches!(refused, Err(ImportError::NoFile(_))), "{file}: {refused:?}");
    }
}

#[tokio::test]
async fn a_failed_import_makes_room_for_the_next_and_a_good_one_is_followed_by_another_version() {
    let bench = Bench::new(64 << 20).await;
    bench.put("bad", b"");
    bench.put("good", &disk(4096));
    bench.put("better", &disk(8192));
    assert!(bench.import("it", "bad").await.stored().is_none());
    let first = bench.import("it", "good").await;
    assert_eq!((first.named().to_string().as_str(), first.stored().is_some()), ("it@1", true));
    // What failed is not what the name stands for while something is ready.
    assert_eq!(bench.import("it", "bad").await, first);
    let second = bench.import("it", "better").await;
    assert_eq!(second.named().to_string(), "it@2");
    let named = async |reference: &str| bench.store.image(reference).await.map(|image| image.version).ok();
    assert_eq!(named("it").await, Some(2));
    assert_eq!(named("it@1").await, Some(1));
    assert_eq!(named(&format!("it@sha256:{}", first.stored().unwrap().sha256)).await, Some(1));
    for absent in ["it@3", "it@0", "it@", "it@x", "it@sha256:", "it@-1", "@1", "other@1"] {
        assert_eq!(named(absent).await, None, "{absent}");
    }
    // A version that is gone is not given to another image.
    let mut tx = bench.store.begin().await.unwrap();
    tx.delete_image(second.id).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(named("it").await, Some(1));
    assert_eq!(bench.import("it", "better").await.version, 3);
}

#[tokio::test]
async fn an_import_ended_by_a_crash_is_named_at_the_next_start() {
    let bench = Bench::new(64 << 20).await;
    bench.images.start(&request("it"), "storing", 5).await.unwrap();
    std::fs::write(bench.directory.path().join("spool/left.raw"), "left").unwrap();
    let config = bench.images.config();
    let sign = bench.images.0.sign.clone();
    Images::open(config, bench.store.clone(), sign, Arc::new(Still), CancellationToken::new()).await.unwrap();
    let image = bench.store.image("it").await.unwrap();
    assert!(matches!(&image.state, ImageState::Failed { cause, .. } if cause == "interrupted"), "{image:?}");
    assert_eq!(std::fs::read_dir(bench.directory.path().join("spool")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_upload_becomes_the_same_image() {
    let bench = Bench::new(64 << 20).await;
    let bytes = disk(9 * 2048);
    let parts: Vec<_> = bytes.chunks(100_000).map(|part| Ok::<_, io::Error>(Bytes::copy_from_slice(part))).collect();
    let body = futures_util::stream::iter(parts);
    bench.images.import_upload(request("it"), Some(bytes.len() as u64), body).await.unwrap();
    let image = bench.ended("it").await;
    assert_eq!(bench.raw(&bench.manifest(&image).await).await, bytes);
    assert_eq!(std::fs::read_dir(bench.directory.path().join("spool")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_upload_whose_client_goes_away_fails_by_name() {
    let bench = Bench::new(64 << 20).await;
    let body = futures_util::stream::once(async { Ok::<_, io::Error>(Bytes::from_static(b"x")) })
        .chain(futures_util::stream::pending());
    let upload = bench.images.import_upload(request("it"), Some(1000), body);
    assert!(tokio::time::timeout(Duration::from_millis(200), upload).await.is_err());
    let image = bench.ended("it").await;
    assert!(matches!(&image.state, ImageState::Failed { cause, .. } if cause == "upload"), "{image:?}");

    let short = futures_util::stream::once(async { Ok::<_, io::Error>(Bytes::from_static(b"x")) });
    let refused = bench.images.import_upload(request("it"), Some(1000), short).await;
    assert!(matches!(refused, Err(ImportError::Upload(_))), "{refused:?}");
}

#[tokio::test]
async fn sweeping_removes_what_no_image_lists() {
    let bench = Bench::new(64 << 20).await;
    bench.put("one", &disk(9 * 2048));
    let mut other = disk(9 * 2048);
    other[4000] = 1;
    bench.put("two", &other);
    let one = bench.import("one", "one").await;
    let two = bench.import("two", "two").await;
    assert_eq!(bench.images.sweep().await.unwrap(), 0);
    let mut tx = bench.store.begin().await.unwrap();
    tx.delete_image(one.id).await.unwrap();
    tx.commit().await.unwrap();
    // Its manifest and first chunk; the last chunk is also the other's.
    assert_eq!(bench.images.sweep().await.unwrap(), 2);
    assert_eq!(bench.raw(&bench.manifest(&two).await).await, other);
}

#[tokio::test]
async fn only_agents_are_served() {
    let bench = Bench::new(64 << 20).await;
    bench.put("it", &disk(4096));
    let image = bench.import("it", "it").await;
    let manifest = image.stored().unwrap().manifest;
    let (rack, id) = bench.agent().await;
    let agent = Peer::Certified(Role::Agent { agent: id, rack });
    let ask = async |uri: String, peer: Option<Peer>| {
        let mut request = HttpRequest::get(uri).body(Body::empty()).unwrap();
        request.extensions_mut().insert(peer);
        let response = bench.images.router().oneshot(request).await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    };
    let uri = format!("/agents/v1/manifests/{manifest}");
    let (status, body) = ask(uri.clone(), Some(agent)).await;
    assert_eq!(status, StatusCode::OK);
    let signed: SignedManifest = serde_json::from_slice(&body).unwrap();
    let manifest = signed.verify(&bench.key).unwrap();
    let chunk = manifest.chunks[0].unwrap().digest;
    let (status, body) = ask(format!("/agents/v1/chunks/{chunk}"), Some(agent)).await;
    assert_eq!((status, Digest::of(&body)), (StatusCode::OK, chunk));

    assert_eq!(ask(uri.clone(), None).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(uri, Some(Peer::Certified(Role::Controller))).await.0, StatusCode::UNAUTHORIZED);
    let absent = Digest::of(b"absent");
    assert_eq!(ask(format!("/agents/v1/chunks/{absent}"), Some(agent)).await.0, StatusCode::NOT_FOUND);
    assert_eq!(ask("/agents/v1/chunks/..%2fmanifests".into(), Some(agent)).await.0, StatusCode::BAD_REQUEST);

    let uri = format!("/agents/v1/chunks/{chunk}");
    let lapsed = Peer::Lapsed(Role::Agent { agent: id, rack });
    assert_eq!(ask(uri.clone(), Some(lapsed)).await.0, StatusCode::UNAUTHORIZED);
    let elsewhere = Peer::Certified(Role::Agent { agent: id, rack: RackId::fresh() });
    assert_eq!(ask(uri.clone(), Some(elsewhere)).await.0, StatusCode::FORBIDDEN);
    let stranger = Peer::Certified(Role::Agent { agent: AgentId::fresh(), rack });
    assert_eq!(ask(uri.clone(), Some(stranger)).await.0, StatusCode::FORBIDDEN);
    let mut tx = bench.store.begin().await.unwrap();
    assert!(tx.revoke(Timestamp::UNIX_EPOCH, id).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(ask(uri, Some(agent)).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_same_disk_in_every_format_and_compression_shares_every_chunk() {
    let bench = Bench::new(64 << 20).await;
    bench.put("disk.raw", &disk(9 * 2048));
    let import = bench.directory.path().join("import");
    for (name, options) in [
        ("disk.qcow2", &["-O", "qcow2"][..]),
        ("sparse.vmdk", &["-O", "vmdk", "-o", "subformat=monolithicSparse"]),
        ("stream.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    ] {
        bench.qemu_img(&[&["convert"][..], options, &["disk.raw", name]].concat());
    }
    let mut files = vec!["sparse.vmdk".to_owned(), "stream.vmdk".to_owned()];
    for (tool, ending) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst"), ("bzip2", "bz2")] {
        for file in ["disk.raw", "disk.qcow2", "stream.vmdk"] {
            let done = process::Command::new(tool).args(["-q", "-k", "-f", file]).current_dir(&import).status();
            assert!(done.unwrap_or_else(|error| panic!("these tests need {tool}: {error}")).success());
            files.push(format!("{file}.{ending}"));
        }
    }
    let raw = bench.import("raw", "disk.raw").await;
    for (index, file) in files.iter().enumerate() {
        let image = bench.import(&format!("image-{index}"), file).await;
        assert!(image.stored().is_some(), "{file}: {image:?}");
        assert_eq!(bench.manifest(&image).await.chunks, bench.manifest(&raw).await.chunks, "{file}");
    }
    assert_eq!(std::fs::read_dir(bench.directory.path().join("spool")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_compressed_image_beyond_the_limit_is_refused() {
    check(
        MIB as u64,
        async |bench| bench.put("it", &zstd::bulk::compress(&disk(4096), 3).unwrap()),
        expect![
            "too-large: more than 1048576 bytes come out of the compressed file; this controller takes no more (images.limit in its configuration)"
        ],
    )
    .await;
}

#[tokio::test]
async fn a_vmdk_that_names_another_file_is_refused() {
    let descriptor = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
        createType=\"monolithicFlat\"\nRW 4 FLAT \"/etc/shadow\" 0\n";
    check(
        64 << 20,
        async |bench| bench.put("it", descriptor.as_bytes()),
        expect!["vmdk: vmdk: the file only describes a disk that lies in other files; convert it first (qemu-img convert -O qcow2)"],
    )
    .await;
    check(
        64 << 20,
        async |bench| {
            bench.put("disk.raw", &disk(4096));
            bench.qemu_img(&["convert", "-O", "vmdk", "disk.raw", "it"]);
            let path = bench.directory.path().join("import/it");
            let mut bytes = std::fs::read(&path).unwrap();
            let at = bytes.windows(9).position(|word| word == b"parentCID").unwrap();
            bytes[at..at + 31].copy_from_slice(b"parentFileNameHint=\"/etc/shadow");
            std::fs::write(&path, bytes).unwrap();
        },
        expect![
            "vmdk: vmdk: the file is a snapshot and names its parent; convert it first (qemu-img convert -O qcow2)"
        ],
    )
    .await;
}

#[tokio::test]
async fn a_file_that_is_not_the_one_that_was_told_is_refused() {
    let bench = Bench::new(64 << 20).await;
    let bytes = disk(4096);
    bench.put("it", &bytes);
    let is = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes));
    for (told, good) in [(is.clone(), true), (is.replace(['0', '1'], "2"), false)] {
        let told = Request { sha256: Some(told), ..request("it") };
        bench.images.import_file(told, "it").await.unwrap();
        let image = bench.ended("it").await;
        assert_eq!(image.stored().is_some(), good, "{image:?}");
        let mut tx = bench.store.begin().await.unwrap();
        tx.delete_image(image.id).await.unwrap();
        tx.commit().await.unwrap();
    }
}
