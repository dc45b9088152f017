//! The names that were perhaps meant.

/// How many names are proposed.
const FEW: usize = 3;

/// `, did you mean …?` when some of the names are near to what was written.
pub(crate) fn did_you_mean<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(written, names).as_slice() {
        [] => String::new(),
        near => {
            let near: Vec<_> = near.iter().map(|name| format!("`{name}`")).collect();
            format!(", did you mean {}?", near.join(" or "))
        }
    }
}

/// The nearest first: those that differ in a third of their letters at most, or go on where it ends.
fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let most = (written.chars().count() / 3).max(1);
    let distance = |name: &str| match name.starts_with(written) && !written.is_empty() {
        true => 0,
        false => strsim::osa_distance(written, name),
    };
    let mut near: Vec<_> =
        names.into_iter().map(|name| (distance(name), name)).filter(|(distance, _)| *distance <= most).collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(FEW).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_proposed_and_others_are_not() {
        let names = ["web-1", "web-2", "db-1", "public-4"];
        assert_eq!(did_you_mean("wbe-1", names), ", did you mean `web-1`?");
        assert_eq!(did_you_mean("web", names), ", did you mean `web-1` or `web-2`?");
        assert_eq!(did_you_mean("kitchen", names), "");
        assert_eq!(did_you_mean("public4", names), ", did you mean `public-4`?");
    }
}
