//! The manual page: what `--help` says, and what there is to know besides.

use std::io;

use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// The page in roff, for `man -l -`.
pub(super) fn page(command: clap::Command) -> Vec<u8> {
    let mut page = Vec::new();
    // Writing to memory cannot fail.
    let _ = write(command, &mut page);
    page
}

fn write(mut command: clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    command.build();
    let commands = commands(&command);
    let man = Man::new(command).manual("bearerd");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    commands.to_writer(page)?;
    man.render_options_section(page)?;
    environment().to_writer(page)?;
    signals().to_writer(page)?;
    exit_status().to_writer(page)?;
    admin_port().to_writer(page)
}

/// Each with its own options; those for all of them come later.
fn commands(command: &clap::Command) -> Roff {
    let mut section = Section::new("COMMANDS");
    for command in command.get_subcommands() {
        if command.get_name() == "help" {
            continue;
        }
        let mut name = vec![bold(command.get_name())];
        for argument in command.get_arguments().filter(|a| !a.is_global_set()) {
            let id = argument.get_id().as_str();
            if matches!(id, "help" | "version") {
                continue;
            }
            name.push(roman(" "));
            if argument.is_positional() {
                name.push(italic(id.to_uppercase()));
                continue;
            }
            name.push(roman("["));
            name.push(bold(format!("--{}", id.replace('_', "-"))));
            if argument.get_action().takes_values() {
                name.push(roman(" "));
                name.push(italic(id.to_uppercase()));
            }
            name.push(roman("]"));
        }
        let about = command.get_about().map(ToString::to_string);
        section.item(name, &about.unwrap_or_default());
    }
    section.0
}

fn environment() -> Roff {
    let mut section = Section::new("ENVIRONMENT");
    for (names, text) in [
        (
            "BEARERD_CONFIG, BEARERD_LISTEN, BEARERD_ADMIN_LISTEN, BEARERD_UPSTREAM_URL, BEARERD_TOKEN_URL, \
             BEARERD_CLIENT_ID, BEARERD_CLIENT_SECRET_FILE, BEARERD_SCOPE",
            "What the flags of these names say; a flag overrides its variable, and that the file.",
        ),
        (
            "BEARERD_CLIENT_SECRET",
            "The client secret. A file is better: it can be changed while bearerd runs.",
        ),
        (
            "BEARERD_CLIENT_AUTH, BEARERD_LOG_LEVEL, BEARERD_LOG_FORMAT, BEARERD_ALLOW_REMOTE_CLIENTS",
            "The keys of these names in the file.",
        ),
    ] {
        section.item(vec![bold(names)], text);
    }
    section.0
}

fn signals() -> Roff {
    let mut section = Section::new("SIGNALS");
    for (name, text) in [
        (
            "SIGTERM",
            "Drain: serve on for drain_delay, stop accepting, finish what is in flight, end.",
        ),
        (
            "SIGINT",
            "The same without the delay. A second signal cuts what is in flight.",
        ),
        (
            "SIGHUP",
            "Read the configuration again. If anything is wrong with it, the one before serves on.",
        ),
    ] {
        section.item(vec![bold(name)], text);
    }
    section.0
}

fn exit_status() -> Roff {
    let mut section = Section::new("EXIT STATUS");
    for (code, text) in [
        ("0", "Done; a drained SIGTERM too."),
        (
            "1",
            "Failed while running, or the drain deadline cut requests.",
        ),
        ("2", "Wrong usage."),
        (
            "69",
            "The authorization server or the API cannot be reached.",
        ),
        ("74", "An address cannot be bound, or a file not read."),
        ("77", "The authorization server refuses the credentials."),
        ("78", "The configuration is wrong."),
    ] {
        section.item(vec![bold(code)], text);
    }
    section.0
}

fn admin_port() -> Roff {
    let mut section = Section::new("ADMIN PORT");
    for (name, text) in [
        ("GET /", "A page for a person: tokens, traffic, errors."),
        ("GET /status", "The same as JSON."),
        (
            "GET /livez, /readyz, /startupz",
            "Probes; with ?verbose they name what is pending.",
        ),
        ("GET /metrics", "Metrics for Prometheus."),
        (
            "POST /token/refresh, /log-level, /quitquitquit",
            "From this machine alone: renew tokens now; change the log level; drain and end, where [admin] quit is true.",
        ),
    ] {
        section.item(vec![bold(name)], text);
    }
    section.0
}

/// A heading, and paragraphs with a name each.
struct Section(Roff);

impl Section {
    fn new(name: &str) -> Self {
        let mut roff = Roff::new();
        roff.control("SH", [name]);
        Self(roff)
    }

    fn item(&mut self, name: Vec<Inline>, text: &str) {
        self.0.control("TP", []);
        self.0.text(name);
        self.0.text(vec![roman(text)]);
    }
}
