//! `docs/operator/cli.md`: the program's own help, written down.

use clap::Command;

/// How wide its lines are.
const WIDTH: usize = 100;

/// All commands with their options, as Markdown.
pub(crate) fn reference(mut command: Command) -> String {
    command.build();
    let mut text = String::from(
        "# The command `rackhand`\n\nThis page is made of the program's help, and a test keeps the two equal. Options that all commands have \
         stand\nat its beginning only. Man pages with the same text come with the package; `--help` behind a command shows it too.\n",
    );
    add(&mut text, &command, "rackhand", 2);
    text
}

fn add(text: &mut String, command: &Command, path: &str, level: usize) {
    // Those at the beginning are not repeated, and what is set on this computer is nobody's business.
    let shown = command.clone().mut_args(|arg| {
        let hidden = level > 2 && (arg.is_global_set() || arg.get_id() == "help");
        arg.hide_env_values(true).hide(hidden)
    });
    let help = shown.term_width(WIDTH).render_long_help().to_string();
    let help: Vec<_> = help.lines().map(str::trim_end).collect();
    *text += &format!("\n{} {path}\n\n```text\n{}\n```\n", "#".repeat(level), help.join("\n").trim());
    for part in command.get_subcommands().filter(|part| !part.is_hide_set() && part.get_name() != "help") {
        add(text, part, &format!("{path} {}", part.get_name()), (level + 1).min(4));
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_documentation_is_what_the_help_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operator/cli.md");
        let now = reference(crate::Cli::command());
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let published = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            now == published,
            "docs/operator/cli.md differs from the help; rewrite it with UPDATE_EXPECT=1 cargo test"
        );
    }
}
