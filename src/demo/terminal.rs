//! Standard output: a block of lines that is drawn again in place, and lines that stay above it.

use std::io::{self, IsTerminal, Write};

/// Colours, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    Title,
    Faint,
    Good,
    Warning,
    Bad,
}

/// Standard output.
pub(super) struct Terminal {
    /// Something that a cursor moves on; otherwise nothing is ever drawn again.
    pub(super) is_interactive: bool,
    has_colours: bool,
    /// The lines of the block, as drawn last.
    block: Vec<String>,
    /// Nobody reads any more.
    pub(super) is_gone: bool,
}

impl Terminal {
    /// Colours follow <https://no-color.org>.
    pub(super) fn new() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let is_interactive = io::stdout().is_terminal() && !is_dumb;
        Self {
            is_interactive,
            has_colours: is_interactive && !set("NO_COLOR"),
            block: Vec::new(),
            is_gone: false,
        }
    }

    /// `text` in a colour, where there are colours.
    pub(super) fn paint(&self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Title => "1",
            Paint::Faint => "2",
            Paint::Good => "32",
            Paint::Warning => "33",
            Paint::Bad => "31",
        };
        if self.has_colours && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// One more line, above the block.
    pub(super) fn line(&mut self, line: &str) {
        let block = std::mem::take(&mut self.block);
        let text = format!("{}{line}\n{}", erase(&block), framed(&block));
        self.write(&text);
        self.block = block;
    }

    /// Draws the block again; an empty one takes it away.
    pub(super) fn block(&mut self, lines: Vec<String>) {
        let text = format!("{}{}", erase(&self.block), framed(&lines));
        self.write(&text);
        self.block = lines;
    }

    fn write(&mut self, text: &str) {
        let mut out = io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        self.is_gone |= written.is_err();
    }
}

fn erase(block: &[String]) -> String {
    match block.len() {
        0 => String::new(),
        lines => format!("\r\x1b[{lines}A\x1b[J"),
    }
}

/// Without automatic wrap: in a narrow terminal a line that wraps would be two to go up.
fn framed(block: &[String]) -> String {
    if block.is_empty() {
        return String::new();
    }
    let lines: String = block.iter().map(|line| format!("{line}\n")).collect();
    format!("\x1b[?7l{lines}\x1b[?7h")
}

/// `text` in exactly `width` columns, cut with an ellipsis or filled up.
pub(super) fn fit(text: &str, width: usize) -> String {
    format!("{:<width$}", cut(text, width))
}

/// `text` in at most `width` columns.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let start: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fits_its_columns() {
        assert_eq!(fit("abc", 5), "abc  ");
        assert_eq!(fit("abcdef", 5), "abcd…");
        assert_eq!(cut("ab", 5), "ab");
    }
}
