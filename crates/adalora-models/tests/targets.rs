//! The choices of adapted layers that the experiments need, on the paths of real encoders.

use adalora_adapter::target;
use adalora_models::ModelConfig;

fn paths(name: &str) -> Vec<String> {
    let folder = format!("{}/../../reference/values/{name}", env!("CARGO_MANIFEST_DIR"));
    let config = ModelConfig::open(folder.as_ref()).unwrap();
    config.linears().into_iter().map(|linear| linear.path).collect()
}

/// Paths that the patterns select, without what they all begin with.
fn selected(patterns: &[&str], paths: &[String]) -> Vec<String> {
    let patterns: Vec<_> = patterns.iter().map(ToString::to_string).collect();
    let places = target::select(&patterns, paths.iter().map(String::as_str)).unwrap();
    places.into_iter().map(|place| paths[place].replace("encoder.layer.", "")).collect()
}

#[test]
fn all_query_and_value_one_kind_of_matrix_and_one_group_of_layers() {
    for (name, [query, value]) in
        [("bert-random", ["query", "value"]), ("deberta-small", ["query_proj", "value_proj"])]
    {
        let paths = paths(name);
        let layers = paths.len() / 6;
        assert!(layers >= 2, "{name}: {paths:?}");
        let all: Vec<_> = paths.iter().map(|path| path.replace("encoder.layer.", "")).collect();
        assert_eq!(selected(&["*"], &paths), all, "{name}");

        let of = |kinds: &[&str]| -> Vec<String> {
            (0..layers).flat_map(|layer| kinds.iter().map(move |kind| format!("{layer}.{kind}"))).collect()
        };
        let attention = [query, value].map(|kind| format!("attention.self.{kind}"));
        let attention = attention.each_ref().map(String::as_str);
        assert_eq!(selected(&[query, value], &paths), of(&attention), "{name}");
        assert_eq!(selected(&[&format!("{{{query},{value}}}")], &paths), of(&attention), "{name}");

        for kind in ["attention.output.dense", "intermediate.dense"] {
            assert_eq!(selected(&[kind], &paths), of(&[kind]), "{name}");
        }
        // `output.dense` ends the path of the attention's output too.
        assert_eq!(selected(&["layer.*.output.dense"], &paths), of(&["output.dense"]), "{name}");

        assert_eq!(selected(&["layer.{0-1}"], &paths), all[..12], "{name}");
        let last = format!("layer.{}", layers - 1);
        assert_eq!(selected(&[&last], &paths), all[all.len() - 6..], "{name}");
        assert_eq!(
            selected(&[&format!("layer.{{0,1}}.attention.self.{query}")], &paths),
            ["0", "1"].map(|layer| format!("{layer}.attention.self.{query}")),
            "{name}"
        );
    }
}
