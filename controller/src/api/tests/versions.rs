//! Versions of images, what is said about them, and the catalogue.

use super::*;

/// Uploads `byte` for some sectors as the next version of `debian`.
async fn upload(bench: &Bench, byte: u8) -> Value {
    let (status, image) = bench.ask(Method::PUT, "/v1/images/debian?firmware=bios", vec![byte; 8192]).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{image}");
    bench.app.images.closed().await;
    bench.ask(Method::GET, &format!("/v1/images/{}", image["id"].as_str().unwrap()), "").await.1
}

async fn a_name_is_its_newest_version_and_others_are_named(on: On) {
    let bench = Bench::new(on).await;
    let (one, two) = (upload(&bench, 1).await, upload(&bench, 2).await);
    assert_eq!((&one["version"], &two["version"]), (&json!(1), &json!(2)));
    let digest = one["content"]["sha256"].as_str().unwrap();
    for (reference, image) in
        [("debian", &two), ("debian@1", &one), ("debian@2", &two), (&format!("debian@sha256:{digest}"), &one)]
    {
        assert_eq!(bench.ask(Method::GET, &format!("/v1/images/{reference}"), "").await.1["id"], image["id"]);
    }
    bench.check(Method::GET, "/v1/images/debian@3", "", expect!["404 not-found: there is no such image"]).await;
}

async fn a_deprecated_image_is_deployed_with_a_warning_and_an_expired_one_is_not(on: On) {
    let bench = Bench::new(on).await;
    let name = discovered(&bench).await;
    bench.ask(Method::POST, &format!("/v1/machines/{name}/adopt"), r#"{"accept_data": true, "name": "web-1"}"#).await;
    upload(&bench, 1).await;
    upload(&bench, 2).await;
    // The test's clock stands at the beginning of 1970.
    let expired = r#"{"expires": "1969-12-31T00:00:00Z"}"#;
    let (status, image) = bench.ask(Method::PATCH, "/v1/images/debian", expired).await;
    assert_eq!((status, &image["version"]), (StatusCode::OK, &json!(2)), "{image}");
    bench
        .check(
            Method::POST,
            "/v1/machines/web-1/deploy",
            r#"{"image": "debian"}"#,
            expect!["409 conflict: image debian@2 has expired at 1969-12-31T00:00:00Z: deploy another version, or set another `expires`"],
        )
        .await;
    bench.ask(Method::PATCH, "/v1/images/debian@1", r#"{"deprecated": true}"#).await;
    let (status, run) = bench.ask(Method::POST, "/v1/machines/web-1/deploy", r#"{"image": "debian@1"}"#).await;
    assert_eq!((status, &run["warnings"]), (StatusCode::ACCEPTED, &json!(["image debian@1 is deprecated"])), "{run}");
    // The version that a run needs stays, the other one may go.
    assert_eq!(bench.ask(Method::DELETE, "/v1/images/debian@1", "").await.0, StatusCode::CONFLICT);
    let never = bench.ask(Method::PATCH, "/v1/images/debian@2", r#"{"expires": null}"#).await.1;
    assert_eq!(never["expires"], Value::Null);
    assert_eq!(bench.ask(Method::DELETE, "/v1/images/debian@2", "").await.0, StatusCode::NO_CONTENT);
}

async fn an_image_that_changed_since_it_was_read_is_not_changed(on: On) {
    let bench = Bench::new(on).await;
    upload(&bench, 1).await;
    let ask = async |method: Method, tag: &str, body: &'static str| {
        let request = Request::builder()
            .method(method)
            .uri("/v1/images/debian")
            .header("authorization", format!("Bearer {}", bench.token))
            .header("content-type", "application/json")
            .header("if-match", tag)
            .body(Body::from(body))
            .unwrap();
        let response = bench.router().oneshot(request).await.unwrap();
        let tag = response.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
        (response.status(), tag)
    };
    let read = ask(Method::GET, "*", "").await.1.unwrap();
    let (status, changed) = ask(Method::PATCH, &read, r#"{"deprecated": true}"#).await;
    assert_eq!(status, StatusCode::OK);
    assert_ne!(changed.unwrap(), read);
    assert_eq!(ask(Method::PATCH, &read, r#"{"deprecated": false}"#).await.0, StatusCode::PRECONDITION_FAILED);
    assert_eq!(ask(Method::DELETE, &read, "").await.0, StatusCode::PRECONDITION_FAILED);
}

async fn what_was_found_in_an_image_is_shown_and_found_again_in_its_chunks(on: On) {
    let bench = Bench::new(on).await;
    let imported = upload(&bench, 1).await;
    let found = imported["findings"].as_array().unwrap();
    assert!(found.iter().any(|finding| finding["severity"] == "not-examined"), "{imported}");
    let (status, checked) = bench.ask(Method::POST, "/v1/images/debian/check", "{}").await;
    assert_eq!((status, &checked["findings"]), (StatusCode::OK, &imported["findings"]), "{checked}");
}

async fn an_import_is_told_what_is_wrong_with_where_from_and_what(on: On) {
    let bench = Bench::new(on).await;
    let refused = async |body: Value, expected: Expect| {
        bench.check(Method::POST, "/v1/images", body.to_string(), expected).await;
    };
    refused(json!({"name": "x"}), expect!["422 invalid: /file: name a `file` or a `url`, one of them"]).await;
    refused(
        json!({"name": "x", "file": "y", "url": "https://example.net/"}),
        expect!["422 invalid: /file: name a `file` or a `url`, one of them"],
    )
    .await;
    refused(
        json!({"name": "x", "url": "file:///etc/shadow"}),
        expect!["422 invalid: /url: `file:///etc/shadow` is no URL that images are fetched from: it begins with https:// or http://, has a host and no password"],
    )
    .await;
    refused(
        json!({"name": "x", "file": "y", "sha256": "abc"}),
        expect!["422 invalid: /sha256: 64 hexadecimal digits, as `sha256sum` prints them"],
    )
    .await;
    refused(
        json!({"name": "x", "file": "y", "os": "beos"}),
        expect!["422 invalid: /os: the catalogue has no `beos`; `rackhand os list` shows what it has"],
    )
    .await;
    refused(
        json!({"name": "x", "file": "y", "os": "flatcar", "settings": "cloud"}),
        expect!["422 invalid: /settings: unknown variant `cloud`, expected one of `cidata`, `none`, `config-2`, `ignition` at line 1 column 56"],
    )
    .await;
    let within = json!({"name": "x", "url": "http://127.0.0.1:1/x"}).to_string();
    assert_eq!(bench.ask(Method::POST, "/v1/images", within).await.0, StatusCode::ACCEPTED);
    bench.app.images.closed().await;
    let (_, image) = bench.ask(Method::GET, "/v1/images/x", "").await;
    assert_eq!(image["failure"]["cause"], "url", "{image}");
    assert!(image["failure"]["detail"].as_str().unwrap().contains("a loopback address"), "{image}");
}

async fn the_catalogue_is_listed_and_says_what_was_tried(on: On) {
    let bench = Bench::new(on).await;
    let (_, page) = bench.ask(Method::GET, "/v1/operating-systems?limit=2", "").await;
    let after = page["next"].as_str().unwrap();
    assert_eq!(page["items"][1]["name"], after);
    let (_, rest) = bench.ask(Method::GET, &format!("/v1/operating-systems?after={after}"), "").await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 5);
    let (_, debian) = bench.ask(Method::GET, "/v1/operating-systems/debian-12", "").await;
    assert_eq!((&debian["tried"], &debian["settings_are_written"]), (&json!("booted"), &json!(true)));
    assert_eq!(bench.ask(Method::GET, "/v1/operating-systems/beos", "").await.0, StatusCode::NOT_FOUND);
    let kickstart = async |os: &str| {
        bench.text(request(&bench.token, Method::GET, &format!("/v1/operating-systems/{os}/kickstart"), "")).await
    };
    let (status, text) = kickstart("rocky-9").await;
    assert_eq!(status, StatusCode::OK, "{text}");
    assert!(text.contains("url --url=https://dl.rockylinux.org/pub/rocky/9/BaseOS/x86_64/os/\n"), "{text}");
    let (status, problem) = kickstart("debian-12").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(problem.contains("there is no kickstart of `debian-12`"), "{problem}");
}

on_both! {
    a_name_is_its_newest_version_and_others_are_named,
    a_deprecated_image_is_deployed_with_a_warning_and_an_expired_one_is_not,
    an_image_that_changed_since_it_was_read_is_not_changed,
    what_was_found_in_an_image_is_shown_and_found_again_in_its_chunks,
    an_import_is_told_what_is_wrong_with_where_from_and_what,
    the_catalogue_is_listed_and_says_what_was_tried,
}
