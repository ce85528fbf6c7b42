//! The rank budget as a function of the optimizer step, and the choice of the triplets it keeps
