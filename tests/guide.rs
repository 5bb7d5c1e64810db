//! Runs every Rust snippet of the guide (`docs/*.md`) and of the README against each broker.
//!
//! All snippets become the modules of one program, which is compiled once; then each runs as a process of its
//! own, with a virtual host of its own. One that does not compile, ends with an error, or prints something
//! else than the page says, fails the test of its page. `cargo test --doc` compiles them as well, without
//! running them.
//!
//! How a snippet is written:
//!
//! - It begins with `rust,no_run` (for the documentation tests, which have no broker) and is a whole program
//!   with a `fn main() -> Result<…>`, or has a hidden function around it, whose argument says what it needs:
//!   `# fn example(channel: &leveret::Channel) -> leveret::Result<()> {`, `connection: &leveret::Connection`,
//!   or none.
//! - `"amqp://localhost"` stands for the broker.
//! - What it prints stands in a `text` block after it, behind a line that is just `prints`.
//! - Before the function of one that uses the feature `json` stands a hidden `# #[cfg(feature = "json")]`; so for
//!   `broker` and `coroutines`. It is run when the tests have that feature.
//! - One that cannot run begins with the comment `// Not run by the tests:` and the reason.
//!
//! A channel that a snippet was given must be in order when it ends: what was published on it was not
//! refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use common::brokers::{Broker, on_each_broker, unique};

const INFO: &str = "rust,no_run";
const NOT_RUN: &str = "// Not run by the tests:";
const BROKER: &str = "\"amqp://localhost\"";
const WITH_JSON: &str = "#[cfg(feature = \"json\")]\n";
const WITH_BROKER: &str = "#[cfg(feature = \"broker\")]\n";
const WITH_COROUTINES: &str = "#[cfg(feature = \"coroutines\")]\n";

/// One Rust block of a page.
#[derive(Debug)]
struct Snippet {
    /// The page and the line, such as `publishing_27`.
    name: String,
    line: usize,
    code: String,
    prints: Option<String>,
}

/// Every page with Rust in it. Each has its test below.
const PAGES: &[&str] = &[
    "README.md",
    "docs/channels.md",
    "docs/connecting.md",
    "docs/consuming.md",
    "docs/errors.md",
    "docs/events-and-blocked.md",
    "docs/introduction.md",
    "docs/listeners.md",
    "docs/publishing.md",
    "docs/questions.md",
    "docs/queues-and-exchanges.md",
    "docs/rpc.md",
    "docs/shutdown.md",
    "docs/sync-and-async.md",
    "docs/taps.md",
    "docs/testing.md",
    "docs/threads-and-coroutines.md",
    "docs/transactions.md",
];

macro_rules! pages {
    ($($test:ident $page:literal)+) => { $(
        #[test]
        fn $test() {
            run_page($page);
        }
    )+ };
}

pages! {
    readme "README.md"
    channels "docs/channels.md"
    connecting "docs/connecting.md"
    consuming "docs/consuming.md"
    errors "docs/errors.md"
    events_and_blocked "docs/events-and-blocked.md"
    introduction "docs/introduction.md"
    listeners "docs/listeners.md"
    publishing "docs/publishing.md"
    questions "docs/questions.md"
    queues_and_exchanges "docs/queues-and-exchanges.md"
    rpc "docs/rpc.md"
    shutdown "docs/shutdown.md"
    sync_and_async "docs/sync-and-async.md"
    taps "docs/taps.md"
    testing "docs/testing.md"
    threads_and_coroutines "docs/threads-and-coroutines.md"
    transactions "docs/transactions.md"
}

fn run_page(page: &str) {
    on_each_broker(|broker| {
        for snippet in runnable(page) {
            snippet.run(broker);
        }
        Ok(())
    });
}

/// Nothing is left out by mistake: every page with Rust has its test, and every block says what it is.
#[test]
fn every_snippet_is_run_or_says_why_not() {
    let mut with_rust = Vec::new();
    for page in pages_of_the_guide() {
        let all = snippets(&page);
        for snippet in all.iter().filter(|snippet| !snippet.code.starts_with(NOT_RUN)) {
            assert!(Kind::of(&snippet.code).is_some(), "{page}:{}: no fn main or example", snippet.line);
        }
        if !all.is_empty() {
            with_rust.push(page);
        }
    }
    assert_eq!(with_rust, PAGES);
}

/// The complete example of that page is a file of tests, word for word.
#[test]
fn the_example_of_the_testing_page_is_a_test() {
    let read = |file: &str| fs::read_to_string(root().join(file)).unwrap();
    assert!(read("docs/testing.md").contains(&read("tests/testing.rs")), "the page shows another text");
}

/// The test can fail.
#[test]
fn blocks_are_found() {
    let page = "text\n```rust,no_run\n# fn example() {\n#\nprintln!(\"1\");\n# }\n```\n\n\
                prints\n\n```text\n1\n```\n";
    let [snippet] = &parse("docs/a-b.md", page)[..] else { panic!() };
    assert_eq!((&*snippet.name, snippet.line), ("a_b_2", 2));
    assert_eq!(snippet.code, "fn example() {\n\nprintln!(\"1\");\n}\n");
    assert_eq!(snippet.prints.as_deref(), Some("1\n"));
    let other = "```rust,no_run\nfn main() {}\n```\n\nA picture:\n\n```text\nbox\n```\n";
    assert_eq!(parse("a.md", other)[0].prints, None);
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages_of_the_guide() -> Vec<String> {
    let files = fs::read_dir(root().join("docs")).expect("the guide");
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut pages: Vec<String> =
        names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect();
    pages.push("README.md".into());
    pages.sort();
    pages
}

fn snippets(page: &str) -> Vec<Snippet> {
    parse(page, &fs::read_to_string(root().join(page)).expect("the page"))
}

fn runnable(page: &str) -> Vec<Snippet> {
    let mut all = snippets(page);
    all.retain(|snippet| !snippet.code.starts_with(NOT_RUN));
    all.retain(|snippet| cfg!(feature = "json") || !snippet.code.contains(WITH_JSON));
    all.retain(|snippet| cfg!(feature = "broker") || !snippet.code.contains(WITH_BROKER));
    all.retain(|snippet| cfg!(feature = "coroutines") || !snippet.code.contains(WITH_COROUTINES));
    all
}

fn parse(page: &str, text: &str) -> Vec<Snippet> {
    let stem = Path::new(page).file_stem().unwrap().to_string_lossy().replace('-', "_").to_lowercase();
    let mut found: Vec<Snippet> = Vec::new();
    let mut lines = text.lines().enumerate();
    // The text since the last Rust block: decides whether a text block is its output.
    let mut between = String::new();
    while let Some((number, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            between.push_str(line);
            continue;
        };
        let block: Vec<&str> =
            lines.by_ref().map(|(_, line)| line).take_while(|line| !line.starts_with("```")).collect();
        if info.starts_with("rust") {
            assert_eq!(info, INFO, "{page}:{}: another kind of Rust block", number + 1);
            let line = number + 1;
            let code = block.iter().map(|line| shown_and_hidden(line).to_owned() + "\n").collect();
            found.push(Snippet { name: format!("{stem}_{line}"), line, code, prints: None });
        } else if info == "text" && between == "prints" {
            let output = block.iter().map(|line| format!("{line}\n")).collect();
            found.last_mut().expect("a block that prints").prints = Some(output);
        }
        between.clear();
    }
    found
}

/// Rustdoc hides lines that begin with `# `.
fn shown_and_hidden(line: &str) -> &str {
    let trimmed = line.trim_start();
    trimmed.strip_prefix("# ").unwrap_or(if trimmed == "#" { "" } else { line })
}

/// What a snippet needs.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Program,
    Channel,
    Connection,
    Nothing,
}

impl Kind {
    fn of(code: &str) -> Option<Kind> {
        let kinds = [
            ("fn main() -> ", Kind::Program),
            ("fn example(channel: &leveret::Channel) -> leveret::Result<()> {", Kind::Channel),
            ("fn example(connection: &leveret::Connection) -> leveret::Result<()> {", Kind::Connection),
            ("fn example() -> leveret::Result<()> {", Kind::Nothing),
        ];
        let starts = |head: &&(&str, Kind)| code.lines().any(|line| line.starts_with(head.0));
        kinds.iter().find(starts).map(|(_, kind)| *kind)
    }

    fn call(self) -> &'static str {
        match self {
            Kind::Program => "main()?;",
            Kind::Nothing => "example()?;",
            Kind::Connection => {
                "let connection = crate::connect()?; example(&connection)?; connection.close()?;"
            }
            Kind::Channel => {
                "let connection = crate::connect()?; let channel = connection.channel()?; \
                 example(&channel)?; channel.close()?; connection.close()?;"
            }
        }
    }
}

impl Snippet {
    /// The source of its module. Its lines have the same numbers as on the page.
    fn module(&self) -> String {
        let call = Kind::of(&self.code).expect("a known kind").call();
        let code = self
            .code
            .replace(BROKER, "crate::uri()")
            .replace(WITH_JSON, "\n")
            .replace(WITH_COROUTINES, "\n")
            .replace(WITH_BROKER, "\n");
        let run = format!("pub fn run() -> Result<(), Box<dyn std::error::Error>> {{ {call} Ok(()) }}");
        format!("{}{code}\n{run}\n", "\n".repeat(self.line))
    }

    fn run(&self, broker: &Broker) {
        let vhost = Vhost::new(broker);
        let config = broker.usual_config().vhost(&*vhost.name);
        let program = PROGRAM.as_ref().unwrap_or_else(|error| panic!("{error}"));
        let output = Command::new(program)
            .arg(&self.name)
            .env("AMQP_URL", config.to_uri())
            .env_remove("RUST_BACKTRACE")
            .output()
            .expect("the program can be run");
        let printed = String::from_utf8_lossy(&output.stdout).replace(&vhost.name, "/");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} failed: {complaints}\nIt printed:\n{printed}", self.name);
        if let Some(expected) = &self.prints {
            assert_eq!(&printed, expected, "{} prints something else than the page says", self.name);
        }
    }
}

/// A virtual host for one snippet.
struct Vhost<'b> {
    name: String,
    broker: &'b Broker,
}

impl Vhost<'_> {
    fn new(broker: &Broker) -> Vhost<'_> {
        let name = unique("snippet");
        broker.create_vhost(&name);
        Vhost { name, broker }
    }
}

impl Drop for Vhost<'_> {
    fn drop(&mut self) {
        let _ = self.broker.delete_vhost(&self.name);
    }
}

/// The program with all snippets, compiled when the first of them is run; or what the compiler said.
static PROGRAM: LazyLock<Result<PathBuf, String>> = LazyLock::new(compile);

fn compile() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guide");
    let _ = fs::remove_dir_all(folder.join("src"));
    fs::create_dir_all(folder.join("src")).expect("a folder");
    let write = |file: &str, text: &str| fs::write(folder.join(file), text).expect("a file");
    let (mut modules, mut choices) = (String::new(), String::new());
    for snippet in PAGES.iter().flat_map(|page| runnable(page)) {
        let name = &snippet.name;
        write(&format!("src/{name}.rs"), &snippet.module());
        modules += &format!("mod {name};\n");
        choices += &format!("        \"{name}\" => {name}::run(),\n");
    }
    write("src/main.rs", &MAIN.replace("//modules", &modules).replace("//choices", &choices));
    let features = [
        ("tls", cfg!(feature = "tls")),
        ("broker", cfg!(feature = "broker")),
        ("json", cfg!(feature = "json")),
        ("coroutines", cfg!(feature = "coroutines")),
    ];
    let features: Vec<_> = features.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    let manifest = MANIFEST.replace("ROOT", &root().to_string_lossy());
    write("Cargo.toml", &manifest.replace("FEATURES", &format!("{features:?}")));
    // The versions that the library was tested with, which are here already.
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).expect("the lock file");

    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--offline", "--quiet", "--manifest-path"])
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .env_remove("CARGO_BUILD_TARGET")
        .output()
        .expect("cargo can be run");
    if !output.status.success() {
        return Err(format!("the snippets do not compile: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(target.join("debug").join(format!("leveret-guide{}", env::consts::EXE_SUFFIX)))
}

const MANIFEST: &str = r#"[package]
name = "leveret-guide"
version = "0.0.0"
edition = "2024"

[workspace]

[dependencies]
leveret = { path = 'ROOT', default-features = false, features = FEATURES }
may = "0.3.51"
serde = { version = "1", features = ["derive"] }
"#;

const MAIN: &str = r#"#![allow(unused)]

//modules
fn main() -> Result<(), Box<dyn std::error::Error>> {
    match &*std::env::args().nth(1).expect("the name of a snippet") {
//choices
        other => Err(format!("no snippet is called {other}").into()),
    }
}

fn uri() -> String {
    std::env::var("AMQP_URL").expect("AMQP_URL")
}

fn connect() -> leveret::Result<leveret::Connection> {
    leveret::Connection::open(uri())
}
"#;
