NB. The library from J: quantises a matrix and multiplies with it. Never run by those who wrote it.
NB.
NB.     jconsole quantised.ijs …/libapl_ffi.so

lib =: '"',(>{:ARGV),'" '
fromf64   =: (lib,'apl_weights_from_f64 i *d x x x *c *i')&cd
matmulf64 =: (lib,'apl_matmul_f64 i i *d x *d x x')&cd
free      =: (lib,'apl_weights_free i i')&cd

w =: 4 %~ _7 + i. 3 5
x =: _1.5 + i. 5
made =: fromf64 (,w);15;3;5;'{"bits":32}';,0
h =: {. > {: made                      NB. the last box is the handle
y =: > 4 { matmulf64 h;x;5;(3$0.0);3;1
echo y
assert *./ 1e_5 > | y - w +/ . * x
assert 0 = > {. free <h
exit 0
