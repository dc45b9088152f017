//! What a multipart push of firmware holds (DSP0266 §"Multipart HTTP push updates", RFC 7578).

use serde_json::{Map, Value};

/// The parts that matter: parameters first, then the file.
#[derive(Debug, PartialEq)]
pub(super) struct Push<'a> {
    /// `UpdateParameters`.
    pub(super) parameters: Map<String, Value>,
    /// What the file is called.
    pub(super) name: String,
    /// The file.
    pub(super) file: &'a [u8],
}

impl<'a> Push<'a> {
    /// Reads a form; `None` when it is none, or has not these two parts in this order.
    pub(super) fn read(content_type: &str, body: &'a [u8]) -> Option<Self> {
        let boundary = content_type.strip_prefix("multipart/form-data;")?.trim().strip_prefix("boundary=")?;
        let delimiter = format!("\r\n--{}", boundary.trim_matches('"')).into_bytes();
        let mut rest = body.strip_prefix(&delimiter[2..])?;
        let mut parts = Vec::new();
        while let Some(part) = rest.strip_prefix(b"\r\n") {
            let end = find(part, &delimiter)?;
            parts.push(&part[..end]);
            rest = &part[end + delimiter.len()..];
        }
        rest.starts_with(b"--").then_some(())?;
        let [parameters, file] = parts[..] else { return None };
        let (head, parameters) = halves(parameters)?;
        (word(head, "name")? == "UpdateParameters").then_some(())?;
        let (head, file) = halves(file)?;
        (word(head, "name")? == "UpdateFile").then_some(())?;
        Some(Self { parameters: serde_json::from_slice(parameters).ok()?, name: word(head, "filename")?, file })
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The head of a part, and its body.
fn halves(part: &[u8]) -> Option<(&str, &[u8])> {
    let at = find(part, b"\r\n\r\n")?;
    Some((str::from_utf8(&part[..at]).ok()?, &part[at + 4..]))
}

/// A parameter of `Content-Disposition`.
fn word(head: &str, name: &str) -> Option<String> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-disposition:"))?;
    let mut parameters = line.split(';').map(str::trim);
    let value = parameters.find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_whole_or_not_at_all() {
        let kind = "multipart/form-data; boundary=b";
        let parameters =
            "--b\r\nContent-Disposition: form-data; name=\"UpdateParameters\"\r\n\r\n{\"Targets\": []}\r\n";
        let file =
            "--b\r\nContent-Disposition: form-data; name=\"UpdateFile\"; filename=\"a-1.bin\"\r\n\r\n\r\n--a\r\n";
        let read = |body: &str| Push::read(kind, body.as_bytes()).map(|push| (push.name.clone(), push.file.to_vec()));
        let whole = Some(("a-1.bin".to_owned(), b"\r\n--a".to_vec()));
        assert_eq!(read(&format!("{parameters}{file}--b--\r\n")), whole);
        for wrong in [format!("{file}{parameters}--b--"), format!("{parameters}{file}"), parameters.into(), "".into()] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
        assert_eq!(Push::read("application/json", b"{}"), None);
    }
}
