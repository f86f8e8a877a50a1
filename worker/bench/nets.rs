//! The nets of the examples by hand, as somebody writes them who needs just these.

use comptoir_domain::job::spec::AdamOptions;
use comptoir_worker::{
    aten::update::{self, AdamStep},
    engine::state::State,
};
use tch::{Device, Kind, Reduction, Tensor};

/// A net and its tensors.
pub enum Net {
    Convnet(Box<Convnet>),
    Encoder(Box<Encoder>),
}

impl Net {
    pub fn new(name: &str, state: &State) -> anyhow::Result<Self> {
        let of = |name: &str| -> anyhow::Result<Tensor> { Ok(state.tensor(name)?.shallow_clone()) };
        Ok(match name {
            "convnet" => Self::Convnet(Box::new(Convnet {
                stages: [Stage::new(&of, 1)?, Stage::new(&of, 2)?],
                head: Affine::new(&of, "head")?,
            })),
            _ => Self::Encoder(Box::new(Encoder {
                embedding: of("head.weight")?,
                position: of("position")?,
                mask: of("mask")?,
                layers: [Layer::new(&of, 0)?, Layer::new(&of, 1)?],
                norm: Affine::new(&of, "encoder.norm")?,
                head: Affine::new(&of, "head")?,
            })),
        })
    }

    pub fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        match self {
            Self::Convnet(net) => net.forward(input, train),
            Self::Encoder(net) => net.forward(input, train),
        }
    }
}

type Of<'a> = dyn Fn(&str) -> anyhow::Result<Tensor> + 'a;

struct Affine {
    weight: Tensor,
    bias: Tensor,
}

impl Affine {
    fn new(of: &Of<'_>, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            weight: of(&format!("{name}.weight"))?,
            bias: of(&format!("{name}.bias"))?,
        })
    }

    fn linear(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }

    fn norm(&self, x: &Tensor) -> Tensor {
        x.layer_norm([32], Some(&self.weight), Some(&self.bias), 1e-5, false)
    }
}

/// Convolution, batch norm, rectifier, pooling.
struct Stage {
    conv: Affine,
    norm: Affine,
    mean: Tensor,
    variance: Tensor,
    tracked: Tensor,
}

impl Stage {
    fn new(of: &Of<'_>, number: u8) -> anyhow::Result<Self> {
        let norm = format!("norm{number}");
        Ok(Self {
            conv: Affine::new(of, &format!("conv{number}"))?,
            norm: Affine::new(of, &norm)?,
            mean: of(&format!("{norm}.running_mean"))?,
            variance: of(&format!("{norm}.running_var"))?,
            tracked: of(&format!("{norm}.num_batches_tracked"))?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let bias = Some(&self.conv.bias);
        let x = x.conv2d(&self.conv.weight, bias, [1, 1], [1, 1], [1, 1], 1);
        if train {
            let _same = self.tracked.shallow_clone().g_add_scalar_(1);
        }
        let x = x.batch_norm(
            Some(&self.norm.weight),
            Some(&self.norm.bias),
            Some(&self.mean),
            Some(&self.variance),
            train,
            0.1,
            1e-5,
            false,
        );
        x.relu().max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
    }
}

pub struct Convnet {
    stages: [Stage; 2],
    head: Affine,
}

impl Convnet {
    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let [first, second] = &self.stages;
        let x = second.forward(&first.forward(x, train), train);
        self.head.linear(&x.flatten(1, -1).dropout(0.1, train))
    }
}

/// Attention and two linear maps, each behind its norm and beside its input.
struct Layer {
    norms: [Affine; 2],
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Affine,
    wide: Affine,
    narrow: Affine,
}

impl Layer {
    fn new(of: &Of<'_>, number: u8) -> anyhow::Result<Self> {
        let layer = format!("encoder.layers.{number}");
        Ok(Self {
            norms: [
                Affine::new(of, &format!("{layer}.norm1"))?,
                Affine::new(of, &format!("{layer}.norm2"))?,
            ],
            in_proj_weight: of(&format!("{layer}.self_attn.in_proj_weight"))?,
            in_proj_bias: of(&format!("{layer}.self_attn.in_proj_bias"))?,
            out_proj: Affine::new(of, &format!("{layer}.self_attn.out_proj"))?,
            wide: Affine::new(of, &format!("{layer}.linear1"))?,
            narrow: Affine::new(of, &format!("{layer}.linear2"))?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor, train: bool) -> Tensor {
        let x = x + self.attend(&self.norms[0].norm(x), mask, train);
        let y = self.wide.linear(&self.norms[1].norm(&x)).gelu("none");
        let y = self.narrow.linear(&y.dropout(0.1, train));
        x + y.dropout(0.1, train)
    }

    /// As `torch.nn.functional.multi_head_attention_forward` goes about it.
    fn attend(&self, x: &Tensor, mask: &Tensor, train: bool) -> Tensor {
        let rows = x.size()[0];
        let x = x.transpose(1, 0);
        let packed = x.linear(&self.in_proj_weight, Some(&self.in_proj_bias));
        let packed = packed
            .unflatten(-1, [3, 32])
            .unsqueeze(0)
            .transpose(0, -2)
            .squeeze_dim(-2)
            .contiguous();
        let parts = [0, 1, 2].map(|part| packed.select(0, part));
        let mask = mask.unsqueeze(0);
        let [query, key, value] = parts.map(|part| part.view([16, rows * 4, 8]).transpose(0, 1));
        let mask = mask.unsqueeze(0);
        let [query, key, value] = [query, key, value].map(|part| part.view([rows, 4, 16, 8]));
        let dropped = if train { 0.1 } else { 0.0 };
        let attended = Tensor::scaled_dot_product_attention(
            &query,
            &key,
            &value,
            Some(&mask),
            dropped,
            false,
            None,
            false,
        );
        let attended = attended.permute([2, 0, 1, 3]).reshape([rows * 16, 32]);
        let mixed = self.out_proj.linear(&attended).view([16, rows, 32]);
        mixed.transpose(1, 0).dropout(0.1, train)
    }
}

pub struct Encoder {
    embedding: Tensor,
    position: Tensor,
    mask: Tensor,
    layers: [Layer; 2],
    norm: Affine,
    head: Affine,
}

impl Encoder {
    fn forward(&self, tokens: &Tensor, train: bool) -> Tensor {
        let x = Tensor::embedding(&self.embedding, tokens, -1, false, false) + &self.position;
        let [first, second] = &self.layers;
        let x = first.forward(&x, &self.mask, train);
        let x = second.forward(&x, &self.mask, train);
        self.head.linear(&self.norm.norm(&x))
    }
}

/// A batch and its target.
pub fn example(net: &str, batch: i64) -> (Tensor, Tensor) {
    tch::manual_seed(7);
    if net == "convnet" {
        let images = Tensor::rand([batch, 1, 8, 8], (Kind::Float, Device::Cpu));
        (
            images,
            Tensor::arange(batch, (Kind::Int64, Device::Cpu)).remainder(10),
        )
    } else {
        let tokens = Tensor::randint(17, [batch, 16], (Kind::Int64, Device::Cpu));
        let shifted = tokens.roll(-1, 1);
        (tokens, shifted)
    }
}

/// The mean loss, and how many classes were the likeliest.
pub fn loss(output: &Tensor, target: &Tensor) -> (Tensor, (f64, i64)) {
    let classes = output.size()[output.dim() - 1];
    let (logits, flat) = (output.reshape([-1, classes]), target.reshape([-1]));
    let loss = logits.cross_entropy_loss::<Tensor>(&flat, None, Reduction::Mean, -100, 0.0);
    let _guard = tch::no_grad_guard();
    let hits = logits.argmax(-1, false).eq_tensor(&flat).sum(Kind::Int64);
    let told = (loss.double_value(&[]), hits.int64_value(&[]));
    (loss, told)
}

/// `AdamW` by hand.
pub struct AdamW {
    options: AdamOptions,
    means: Vec<(Tensor, Tensor)>,
    steps: i32,
}

impl AdamW {
    pub fn new(parameters: &[Tensor], options: AdamOptions) -> Self {
        let zeros = |it: &Tensor| (it.zeros_like(), it.zeros_like());
        Self {
            options,
            means: parameters.iter().map(zeros).collect(),
            steps: 0,
        }
    }

    pub fn step(&mut self, parameters: &[Tensor], gradients: &[Tensor], rate: f64) {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let AdamOptions {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            ..
        } = self.options;
        let step = AdamStep {
            beta1,
            beta2,
            epsilon,
            correction: (1.0 - beta2.powi(self.steps)).sqrt(),
            step_size: rate / (1.0 - beta1.powi(self.steps)),
        };
        let each = parameters.iter().zip(gradients).zip(&self.means);
        for ((parameter, gradient), (mean, square)) in each {
            let _same = parameter
                .shallow_clone()
                .g_mul_scalar_(1.0 - rate * weight_decay);
            update::adam(parameter, gradient, mean, square, &step)
                .expect("tensors of one shape take a step");
        }
    }
}
