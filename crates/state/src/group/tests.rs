mod assign;
mod common;
mod membership;
mod offsets;
mod records;
