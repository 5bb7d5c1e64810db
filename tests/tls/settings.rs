//! What is wrong with the settings is said before anything is sent, and without secrets.

use std::{fs, path::PathBuf};

use leveret::{Config, Connection, Error, ServerName, TlsOptions, native_tls::TlsConnector};

use crate::front::{file, read, trusting};

/// Nobody listens there: whoever tried to connect would get another error.
fn complaint(tls: TlsOptions) -> String {
    match Connection::open(Config::new().host("127.0.0.1", 1).tls(tls)).unwrap_err() {
        Error::Invalid(text) => text.to_string(),
        other => panic!("{other:?}"),
    }
}

/// A file with this text, beside the certificates.
fn text_file(name: &str, text: &[u8]) -> PathBuf {
    let path = file(name);
    fs::write(&path, text).unwrap();
    path
}

/// Row 7: a file that is missing or holds something else: which file, of which setting.
#[test]
fn files_that_cannot_be_used_are_named() {
    let missing = file("missing.pem");
    let junk = text_file("junk.pem", b"tell nobody: s3cret");
    let broken =
        text_file("broken.key", b"-----BEGIN PRIVATE KEY-----\nczNjcmV0\n-----END PRIVATE KEY-----\n");
    let (certificate, key) = (file("client.pem"), file("client.key"));
    let base = TlsOptions::new;
    for (tls, setting, path, text) in [
        (
            base().ca_certificate_file(&missing),
            "ca_certificate_file (cacertfile)",
            &missing,
            "cannot be read",
        ),
        (
            base().ca_certificate_file(&junk),
            "ca_certificate_file (cacertfile)",
            &junk,
            "no certificate in PEM",
        ),
        (base().ca_certificate_file(&key), "ca_certificate_file", &key, "no certificate in PEM"),
        (base().certificate_file(&missing), "certificate_file (certfile)", &missing, "cannot be read"),
        (base().certificate_file(&junk), "certificate_file (certfile)", &junk, "neither PEM nor PKCS#12"),
        (base().certificate_file(&key).key_file(&key), "certificate_file", &key, "no certificate in PEM"),
        (base().certificate_file(&certificate), "certificate_file", &certificate, "no private key"),
        (
            base().certificate_file(&certificate).key_file(&missing),
            "key_file (keyfile)",
            &missing,
            "cannot be read",
        ),
        (
            base().certificate_file(&certificate).key_file(&junk),
            "key_file (keyfile)",
            &junk,
            "no private key",
        ),
        (
            base().certificate_file(&certificate).key_file(&broken),
            "key_file (keyfile)",
            &broken,
            "no private key",
        ),
    ] {
        let complaint = complaint(tls.password("s3cret"));
        for part in [setting, &*path.to_string_lossy(), text] {
            assert!(complaint.contains(part), "{complaint:?} does not contain {part:?}");
        }
        assert!(!complaint.contains("s3cret") && !complaint.contains("czNjcmV0"), "{complaint}");
    }
}

/// Row 7: a wrong passphrase, and a key of somebody else.
#[test]
fn keys_that_do_not_fit_are_refused() {
    let wrong = complaint(TlsOptions::new().certificate_file(file("client.p12")).password("s3cret"));
    assert!(
        wrong.contains("client.p12") && wrong.contains("password") && !wrong.contains("s3cret"),
        "{wrong}"
    );
    let locked = TlsOptions::new().certificate_file(file("client.pem")).key_file(file("client-locked.key"));
    for tls in [locked.clone(), locked.password("s3cret")] {
        let complaint = complaint(tls);
        assert!(complaint.contains("client-locked.key"), "{complaint}");
        assert!(complaint.contains("password") && !complaint.contains("s3cret"), "{complaint}");
    }
    let others = TlsOptions::new().certificate_file(file("client.pem")).key_file(file("server.key"));
    assert!(complaint(others).contains("does the key belong to the certificate?"));
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let connector = || TlsOptions::new().connector(TlsConnector::new().unwrap());
    let p12 = TlsOptions::new().certificate_file(file("client.p12"));
    for (tls, expected) in [
        (TlsOptions::new().key_file(file("client.key")), "key_file (keyfile) is set"),
        (TlsOptions::new().password("s3cret"), "the TLS password is set"),
        (p12.key_file(file("client.key")), "a PKCS#12 file has its own key"),
        (connector().ca_certificate_file(file("ca.pem")), "ca_certificate_file"),
        (connector().certificate_file(file("client.pem")), "certificate_file"),
        (connector().danger_accept_any_certificate(true), "danger_accept_any_certificate"),
        (connector().server_name(ServerName::Off), "ServerName::Off"),
    ] {
        let complaint = complaint(tls);
        assert!(complaint.contains(expected), "{complaint:?} does not contain {expected:?}");
    }
}

/// Row 4: neither a key nor a passphrase is ever printed.
#[test]
fn options_print_without_their_passphrase() {
    let tls = trusting().certificate_file(file("client.p12")).password("hare-secret");
    let connector = TlsOptions::new().connector(TlsConnector::new().unwrap());
    for printed in [format!("{tls:?}"), format!("{:?}", Config::new().tls(tls)), format!("{connector:?}")] {
        assert!(!printed.contains("hare-secret"), "{printed}");
    }
    assert!(!read("client.p12").is_empty());
}
