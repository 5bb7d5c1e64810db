//! The links of the pages, without a network: every relative one leads to a file and a heading that exist,
//! and works in the repository as well as in the documentation that rustdoc makes.
//!
//! A page of the guide names its links and defines them at its end, `[confirms]: publishing.md#confirms`. In
//! rustdoc `src/guide/links.md` stands before each page and defines the same names as items; Markdown takes
//! the first definition.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const OTHER_PAGES: &[&str] = &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];

/// Where the links lead in rustdoc.
const LINKS: &str = "src/guide/links.md";

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn guide() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let names = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut pages: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    pages.sort();
    pages
}

/// The text without its code.
fn prose(page: &str) -> String {
    let mut in_block = false;
    let mut prose = String::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            prose.extend(line.split('`').step_by(2).collect::<Vec<_>>().join("`").chars().chain(['\n']));
        }
    }
    prose
}

/// `[name]: target` at the start of a line.
fn definitions(page: &str) -> BTreeMap<String, String> {
    let definition = |line: &str| {
        let (name, target) = line.strip_prefix('[')?.split_once("]: ")?;
        Some((name.to_lowercase(), target.trim().to_owned()))
    };
    page.lines().filter_map(definition).collect()
}

/// The targets of `[text](target)`.
fn inline_links(prose: &str) -> Vec<String> {
    prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.into())
        .collect()
}

/// The names in `[text][name]` and `[name]`. In the guide brackets stand for nothing else.
fn names(prose: &str) -> BTreeSet<String> {
    let without_definitions: Vec<&str> =
        prose.lines().filter(|line| !(line.starts_with('[') && line.contains("]: "))).collect();
    let text = without_definitions.join(" ");
    let mut names = BTreeSet::new();
    let mut rest = &*text;
    while let Some((_, after)) = rest.split_once('[') {
        let (label, after) = after.split_once(']').unwrap_or_else(|| panic!("an open bracket: {after:.40}"));
        rest = after;
        // `[text][name]`: the next round takes the name.
        if !after.starts_with(['[', '(']) {
            names.insert(label.to_lowercase());
        }
    }
    names
}

/// The anchors of a page's headings, as the repository's view and rustdoc make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let mut anchors = BTreeSet::new();
    for line in page.lines() {
        in_block ^= line.starts_with("```");
        if line.starts_with('#') && !in_block {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            assert!(anchors.insert(anchor), "two headings with the same anchor: {line}");
        }
    }
    anchors
}

fn assert_exists(page: &str, target: &str) {
    if target.contains("://") || target.starts_with("mailto:") {
        return;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let folder = Path::new(page).parent().unwrap();
    let file = if file.is_empty() { page.into() } else { folder.join(file).to_string_lossy().into_owned() };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file);
    assert!(path.exists(), "{page} links to {file}, which does not exist");
    if let Some(anchor) = anchor {
        assert!(anchors(&read(&file)).contains(anchor), "{page} links to {target}: no such heading");
    }
}

#[test]
fn links_lead_to_what_exists() {
    let guide = guide().into_iter().map(|page| format!("docs/{page}"));
    for page in OTHER_PAGES.iter().map(ToString::to_string).chain(guide) {
        let text = prose(&read(&page));
        for target in inline_links(&text).into_iter().chain(definitions(&text).into_values()) {
            assert_exists(&page, &target);
        }
    }
}

#[test]
fn the_links_of_the_guide_work_in_rustdoc_as_well() {
    let in_rustdoc = definitions(&read(LINKS));
    for page in guide() {
        let text = prose(&read(&format!("docs/{page}")));
        let defined = definitions(&text);
        let used = names(&text);
        assert_eq!(used, defined.keys().cloned().collect(), "{page}: the names that are used and defined");
        for target in inline_links(&text) {
            assert!(target.contains("://"), "{page}: {target} needs a name, to work in rustdoc");
        }
        for (name, target) in defined.iter().filter(|(_, target)| !target.contains("://")) {
            assert_eq!(in_rustdoc.get(name), Some(&as_item(target)), "{page}: [{name}] in {LINKS}");
        }
    }
}

#[test]
fn rustdoc_has_every_page_of_the_guide() {
    let source = read("src/guide.rs");
    for page in guide() {
        assert!(
            source.contains(&format!("include_str!(\"../docs/{page}\")")),
            "{page} is not in src/guide.rs"
        );
    }
}

/// `sync-and-async.md#how` is the module `sync_and_async` in rustdoc.
fn as_item(target: &str) -> String {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let module = file.trim_end_matches(".md").replace('-', "_");
    let item = if module == "index" { "crate::guide".to_owned() } else { format!("crate::guide::{module}") };
    if anchor.is_empty() { item } else { format!("{item}#{anchor}") }
}

/// The tests can fail.
#[test]
fn links_are_found() {
    let page = "# It's *one* `Page`\n\n[a][b] and [C],\n[x](y.md)\n\n```rust\n[no]\n# no\n```\n`[no]`\n\n\
                [b]: b.md\n[C]: c.md#d\n";
    let text = prose(page);
    assert_eq!(names(&text), ["b".to_owned(), "c".to_owned()].into());
    assert_eq!(inline_links(&text), ["y.md"]);
    assert_eq!(definitions(&text).into_iter().collect::<Vec<_>>().len(), 2);
    assert_eq!(anchors(page), ["its-one-page".to_owned()].into());
    assert_eq!(as_item("sync-and-async.md#how"), "crate::guide::sync_and_async#how");
    assert_eq!(as_item("index.md"), "crate::guide");
}

/// The rows of the table of settings: the URI's key, and the default as the page has it.
fn settings() -> Vec<(String, String)> {
    let page = read("docs/connecting.md");
    let section = page.split("\n## Every setting").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    cells
        .filter(|cells| cells[2].starts_with('`'))
        .map(|cells| (cells[2].split('`').nth(1).unwrap().to_owned(), cells[3].to_owned()))
        .collect()
}

/// A default as a URI has it; `None` where it has nothing to say.
fn in_a_uri(key: &str, default: &str) -> Option<String> {
    let number = |text: &str| text.trim_matches('`').parse::<u64>().ok();
    Some(match default.split_once(' ') {
        _ if default == "none" => return None,
        Some((seconds, "s")) if ["heartbeat", "keepalive"].contains(&key) => seconds.to_owned(),
        Some((seconds, "s")) => (number(seconds)? * 1000).to_string(),
        Some((size, "KiB")) => (number(size)? << 10).to_string(),
        Some((size, "MiB")) => (number(size)? << 20).to_string(),
        None if default == "yes" => "true".to_owned(),
        None if default == "no" => "false".to_owned(),
        None => number(default)?.to_string(),
        _ => return None,
    })
}

/// Section 12 of the behaviour: the page on connecting has every default as it is.
#[test]
fn the_page_has_the_defaults() {
    let defaults: leveret::Config = "amqp://h".parse().unwrap();
    let mut compared = 0;
    for (key, default) in settings() {
        let Some(value) = in_a_uri(&key, &default) else { continue };
        let config: leveret::Config = format!("amqp://h?{key}={value}").parse().unwrap();
        assert_eq!(config.to_uri(), defaults.to_uri(), "{key} is {default} on the page");
        // Another value would be seen.
        let other = match &*value {
            "true" => "false".to_owned(),
            "false" => "true".to_owned(),
            number => (number.parse::<u64>().unwrap() - 1).to_string(),
        };
        let config: leveret::Config = format!("amqp://h?{key}={other}").parse().unwrap();
        assert_ne!(config.to_uri(), defaults.to_uri(), "{key}");
        compared += 1;
    }
    assert!(compared >= 20, "{compared} of them");
}

/// The table of limits names settings, with the defaults that they have.
#[test]
fn the_limits_are_those_of_their_settings() {
    let page = read("docs/connecting.md");
    let section = page.split("\n## Every wait").nth(1).unwrap().split("\n## ").next().unwrap();
    let defaults: BTreeMap<String, String> = page
        .split("\n## Every setting")
        .nth(1)
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>())
        .map(|cells| (cells[1].clone(), cells[3].clone()))
        .collect();
    let mut compared = 0;
    for row in section.lines().filter(|line| line.contains("_timeout`")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let setting = cells[3].split('`').nth(1).unwrap();
        assert_eq!(cells[2], defaults[setting], "{row}");
        compared += 1;
    }
    assert!(compared >= 9, "{compared} of them");
}
