//! The architecture: which part of the crate may use which, and how large a file may grow.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Each module and the modules that it may name. `patterns`, and `cli` when it comes, use the public API only.
const LAYERS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("sync", &["error"]),
    ("protocol", &["error"]),
    ("transport", &["error", "sync"]),
    ("connection", &["error", "sync", "protocol", "transport"]),
    ("channel", &["error", "sync", "protocol", "connection"]),
    ("broker", &["error", "sync", "protocol", "transport"]),
    ("patterns", &[PUBLIC, "hooks"]),
];

/// What the crate's users see.
const PUBLIC: &str = "the public API";

/// The one file that joins the in-process broker to the client, and those that send a `Message`.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("broker/connect.rs", "connection"),
    ("broker/direct/consumer.rs", PUBLIC),
    ("broker/direct/peer.rs", PUBLIC),
    ("broker/direct/published.rs", PUBLIC),
];

/// What `protocol`, which moves no bytes and knows no time, must not name.
const NOT_IN_PROTOCOL: &[&str] =
    &["std::net", "std::io", "std::thread", "Instant", "SystemTime", "Mutex", "RwLock", "Condvar", "Atomic"];

/// Lines that are neither empty nor only a comment, without the tests.
const MAX_LINES: usize = 500;

/// Tables: one row per item, nothing to understand.
const TABLES: &[&str] = &["protocol/spec.rs"];

/// Stand beside the layers: `fuzzing` feeds bytes to all of them, `guide` is text only.
const EXEMPT: &[&str] =
    &["lib.rs", "fuzzing.rs", "channel/fixture.rs", "broker/session/fixture.rs", "guide.rs"];

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                sources.push((name, without_tests(&fs::read_to_string(&path).unwrap())));
            }
        }
    }
    sources.retain(|(name, _)| !EXEMPT.contains(&&**name) && !name.ends_with("tests.rs"));
    sources.sort();
    sources
}

/// The code lines before the module of tests, which is the last thing in its file.
fn without_tests(source: &str) -> String {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The first names after `crate::`, also of `use crate::{one, other::{…}}`.
fn used_modules(code: &str) -> Vec<String> {
    let mut used = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            used.push(identifier(rest));
            continue;
        };
        let (mut depth, mut start) = (1, 0);
        for (at, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || (depth == 1 && letter == ',') {
                used.push(identifier(group[start..at].trim()));
                start = at + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    used.retain(|name| !name.is_empty());
    used
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// `crate::Error` stands for `crate::error::Error`; to `patterns` it and the other types at the
/// root are the public API.
fn module_of<'a>(name: &'a str, allowed: &[&str]) -> &'a str {
    match name {
        "Error" | "Result" if !allowed.contains(&PUBLIC) => "error",
        _ if name.starts_with(char::is_uppercase) => PUBLIC,
        _ => name,
    }
}

#[test]
fn no_module_uses_one_above_it() {
    let mut wrong = Vec::new();
    for (file, code) in sources() {
        let module = file.split(['/', '.']).next().unwrap();
        let (_, allowed) = LAYERS
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{file} is in no layer"));
        for used in used_modules(&code) {
            let used = module_of(&used, allowed);
            if used != module && !allowed.contains(&used) && !EXCEPTIONS.contains(&(&*file, used)) {
                wrong.push(format!("{file} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn protocol_does_no_input_or_output_and_knows_no_time_and_no_threads() {
    for (file, code) in sources().iter().filter(|(file, _)| file.starts_with("protocol/")) {
        for word in NOT_IN_PROTOCOL {
            assert!(!code.contains(word), "{file} names {word}");
        }
    }
}

/// Who waits need not know whether a coroutine does.
#[test]
fn only_sync_knows_of_coroutines() {
    for (file, code) in sources().iter().filter(|(file, _)| !file.starts_with("sync/")) {
        assert!(!code.contains("may::"), "{file} names may");
    }
}

/// Row 102: what there is to say goes to the log, whose records say where they are from.
#[test]
fn nothing_is_printed_and_every_log_line_has_a_target() {
    const PRINTING: &[&str] = &["print!(", "println!(", "dbg!(", "stdout()", "stderr()"];
    for (file, code) in sources() {
        for word in PRINTING {
            assert!(!code.contains(word), "{file}: {word}");
        }
        for line in code.split("log::").skip(1) {
            let is_macro = ["error!(", "warn!(", "info!(", "debug!(", "trace!(", "log!("]
                .iter()
                .find(|it| line.starts_with(**it));
            let Some(name) = is_macro else { continue };
            let target = line[name.len()..].trim_start();
            assert!(
                target.starts_with("target: \"leveret::"),
                "{file}: log::{}",
                &line[..40.min(line.len())]
            );
        }
    }
}

/// Row 102: and the page on errors has all of them.
#[test]
fn every_target_of_the_log_is_documented() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md")).unwrap();
    let table = page.split("## The log").nth(1).unwrap();
    let mut targets: Vec<String> = Vec::new();
    for (file, code) in sources() {
        for rest in code.split("target: \"").skip(1) {
            let target = rest.split('"').next().unwrap_or_default();
            assert!(table.contains(&format!("`{target}`")), "{file}: {target} is not in docs/errors.md");
            targets.push(target.to_owned());
        }
    }
    targets.sort();
    targets.dedup();
    assert!(targets.len() >= 7, "they are found: {targets:?}");
    let documented = table.split("`leveret::").skip(1).map(|rest| rest.split('`').next().unwrap_or_default());
    for name in documented {
        assert!(targets.contains(&format!("leveret::{name}")), "leveret::{name} logs nothing");
    }
}

/// Row 18: every thread has a name, and the page on connecting has all that a connection may start.
#[test]
fn every_thread_is_documented() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/connecting.md")).unwrap();
    let page = page.split("## Threads").nth(1).unwrap();
    let mut names = 0;
    for (file, code) in sources().iter().filter(|(file, _)| !file.starts_with("broker/")) {
        let is_unnamed = code.contains("thread::spawn(") || code.contains("thread::Builder");
        assert!(!is_unnamed || file.starts_with("sync"), "{file} has threads of its own making");
        for rest in code.split("\"leveret-").skip(1) {
            let name = rest.split('"').next().unwrap_or_default();
            assert!(page.contains(&format!("`leveret-{name}`")), "{file}: leveret-{name}");
            names += 1;
        }
    }
    assert!(names >= 10, "they are found");
}

#[test]
fn no_file_is_long() {
    for (file, code) in sources() {
        let lines = code.lines().count();
        assert!(lines <= MAX_LINES || TABLES.contains(&&*file), "{file} has {lines} lines of code");
    }
}

/// The test can fail.
#[test]
fn uses_are_found() {
    let code =
        "use crate::{\n    error::{Error, Result},\n    sync,\n};\nuse crate::channel::Core; x(crate::Error)";
    assert_eq!(used_modules(code), ["error", "sync", "channel", "Error"]);
}
