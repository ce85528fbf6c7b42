//! Adapters on modules whose names loaders have stumbled over, in every format, with what the layers make of an input:
//! `cargo run -p adalora-adapter --example odd_names -- FOLDER`. `reference/formats_check.py` loads them with PEFT.

use std::collections::BTreeMap;
use std::path::PathBuf;

use adalora_adapter::random::Random;
use adalora_adapter::store::{Description, save, write_tensors};
use adalora_adapter::{Arena, Form, Layout, Linear, PeftAdapter, Site};
use tch::Device;

/// Names and ranks.
const MODULES: [(&str, usize); 7] = [
    ("fc", 2),
    ("block.fc", 3),
    ("block.weight", 1),
    ("weight_norm.lora_A.fc", 2),
    ("lora_block.default.proj", 1),
    ("default.fc2", 3),
    ("default.weight.out", 0),
];
const D_IN: usize = 6;
const D_OUT: usize = 5;
const INIT_R: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("the folder to write to is the argument")?);
    let site = |(path, rank): (&str, usize)| Site { path: path.into(), d_in: D_IN, d_out: D_OUT, rank };
    let layout = Layout::new(Form::Svd, MODULES.map(site).into());
    let arena = Arena::new(layout, Vec::new(), Device::Cpu, 1);
    let mut random = Random::new(2, "odd names");
    let values = random.normal(&[arena.len() as i64], 1.0);
    tch::no_grad(|| arena.param().shallow_clone().copy_(&values));
    let scale = 1.7;

    let x = random.normal(&[4, D_IN as i64], 1.0);
    let mut tensors: BTreeMap<String, _> = [("x".to_owned(), x.shallow_clone())].into();
    for ((path, _), adapter) in MODULES.into_iter().zip(arena.adapters(scale)) {
        let weight = random.normal(&[D_OUT as i64, D_IN as i64], 1.0);
        let mut linear = Linear::new(path, weight.shallow_clone(), None);
        linear.attach(adapter);
        tensors.insert(format!("frozen.{path}"), weight);
        tensors.insert(format!("output.{path}"), linear.forward(&x).detach());
    }
    std::fs::create_dir_all(&folder)?;
    write_tensors(&folder.join("layers.safetensors"), &tensors)?;

    let description = Description {
        base_model: "odd names".into(),
        prefix: String::new(),
        task_type: "SEQ_CLS",
        target_modules: MODULES.map(|(path, _)| path.to_owned()).into(),
        modules_to_save: Vec::new(),
        init_r: INIT_R,
        target_r: 2,
        alpha: scale * INIT_R as f64,
        scales: vec![scale; MODULES.len()],
        total_steps: 10,
    };
    // The last ones live, so that a loader which takes the first ones is found out.
    let live = MODULES.map(|(_, rank)| (0..INIT_R).map(|place| place >= INIT_R - rank).collect::<Vec<_>>());
    let run = folder.join("run");
    save(&run, &arena, &live.each_ref().map(Vec::as_slice), &description)?;
    PeftAdapter::open(&run)?.into_adalora()?.save(&folder.join("adalora"))?;
    PeftAdapter::open(&run)?.into_lora(false)?.save(&folder.join("lora"))?;
    PeftAdapter::open(&run)?.into_lora(true)?.save(&folder.join("padded"))?;
    Ok(())
}
