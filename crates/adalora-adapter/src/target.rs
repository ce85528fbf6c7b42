//! Which linear layers get an adapter: patterns over whole path components.
//!
//! A pattern is one or more components separated by dots. It matches a path that contains these components next to
//! each other, each whole: `query` matches `encoder.layer.0.attention.self.query` but not `query_proj`,
//! `output.dense` matches both output layers of a BERT block, `layer.*.output.dense` only that of the feed-forward
//! part, `layer.3` every layer of block 3. `*` stands for any one component.

use std::fmt;

/// Patterns that no layer of the model matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoMatch {
    /// The patterns, each with the layer names that come nearest.
    pub patterns: Vec<(String, Vec<String>)>,
}

impl std::error::Error for NoMatch {}

impl fmt::Display for NoMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (pattern, near)) in self.patterns.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            let near: Vec<_> = near.iter().map(|name| format!("`{name}`")).collect();
            write!(f, "no layer matches `{pattern}`; near it: {}", near.join(", "))?;
        }
        Ok(())
    }
}

/// Whether the pattern's components stand next to each other in the path.
pub fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<_> = pattern.split('.').collect();
    let path: Vec<_> = path.split('.').collect();
    path.windows(pattern.len())
        .any(|part| pattern.iter().zip(part).all(|(wanted, found)| *wanted == "*" || wanted == found))
}

/// The paths that any pattern matches, in the order of `paths`.
///
/// # Errors
///
/// Every pattern that matches nothing, with near names: one that silently selects no layer is the usual typing
/// mistake.
pub fn select<'a>(
    patterns: &[String],
    paths: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<usize>, NoMatch> {
    let paths: Vec<_> = paths.into_iter().collect();
    let unmatched: Vec<_> = patterns
        .iter()
        .filter(|pattern| !paths.iter().any(|path| matches(pattern, path)))
        .map(|pattern| (pattern.clone(), near_names(pattern, &paths)))
        .collect();
    if !unmatched.is_empty() {
        return Err(NoMatch { patterns: unmatched });
    }
    Ok((0..paths.len()).filter(|&i| patterns.iter().any(|pattern| matches(pattern, paths[i]))).collect())
}

/// Up to three names that would be patterns, nearest first: runs of components as long as the pattern.
fn near_names(pattern: &str, paths: &[&str]) -> Vec<String> {
    let length = pattern.split('.').count();
    let mut names: Vec<String> = paths
        .iter()
        .flat_map(|path| {
            let parts: Vec<_> = path.split('.').collect();
            parts.windows(length).map(|part| part.join(".")).collect::<Vec<_>>()
        })
        .filter(|name| name.split('.').all(|part| part.parse::<usize>().is_err()))
        .collect();
    names.sort();
    names.dedup();
    names.sort_by_key(|name| strsim::levenshtein(name, pattern));
    names.truncate(3);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 5] = [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.output.dense",
        "encoder.layer.0.output.dense",
        "encoder.layer.1.attention.self.query",
        "encoder.layer.11.output.dense",
    ];

    fn selected(patterns: &[&str]) -> Result<Vec<usize>, NoMatch> {
        select(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>(), PATHS)
    }

    #[test]
    fn components_match_whole_and_next_to_each_other() {
        assert_eq!(selected(&["query"]).unwrap(), [0, 3]);
        assert_eq!(selected(&["output.dense"]).unwrap(), [1, 2, 4]);
        assert_eq!(selected(&["layer.*.output.dense"]).unwrap(), [2, 4]);
        assert_eq!(selected(&["layer.1", "query"]).unwrap(), [0, 3]);
        assert!(selected(&["que"]).is_err());
        assert!(selected(&["attention.query"]).is_err());
    }

    #[test]
    fn every_pattern_without_a_match_is_reported_with_near_names() {
        let error = selected(&["querry", "query", "outptu.dense"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no layer matches `querry`; near it: `query`, `dense`, `layer`; \
             no layer matches `outptu.dense`; near it: `output.dense`, `attention.self`, `self.query`"
        );
    }
}
