package main

import (
	"encoding/gob"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"strings"
	"time"
)

type Point struct{ X, Y int }

type Widths struct {
	Bool       bool
	Int        int
	Int8       int8
	Int16      int16
	Int32      int32
	Int64      int64
	Uint       uint
	Uint8      uint8
	Uint16     uint16
	Uint32     uint32
	Uint64     uint64
	Uintptr    uintptr
	Float32    float32
	Float64    float64
	Complex64  complex64
	Complex128 complex128
	String     string
	Bytes      []byte
}

type Node struct {
	Value int
	Next  *Node
}

type Tree struct {
	Name     string
	Children []Tree
	ByName   map[string]*Tree
}

// Ping and Pong contain each other.
type Ping struct {
	Number int
	Pong   *Pong
}

type Pong struct {
	Name  string
	Pings []Ping
}

type Nest []Nest

type Dirs map[string]Dirs

type Pointers struct {
	Nil      *int
	Zero     *int
	Set      *int
	Deep     **string
	Struct   *Point
	NilPoint *Point
	Array    *[2]int
}

type Base struct{ ID uint32 }

type Derived struct {
	Base
	hidden int
	Name   string
	Chan   chan int
	Func   func()
}

type Box struct {
	Label string
	Any   any
	Many  []any
	Named map[string]any
}

type Shape interface{ Area() float64 }

type Square struct{ Side float64 }

type Circle struct{ Radius float64 }

type Color int

type Names []string

type Failure struct{ Message string }

type Key struct {
	Kind string
	Size [2]int8
}

type Times struct {
	Before time.Time
	At     time.Time
	Later  *time.Time
}

type Empty struct{}

func (s Square) Area() float64   { return s.Side * s.Side }
func (c *Circle) Area() float64  { return c.Radius * c.Radius * math.Pi }
func (f *Failure) Error() string { return f.Message }

func init() {
	gob.Register(Point{})
	gob.Register(Box{})
	gob.Register(Square{})
	gob.Register(&Circle{})
	gob.Register(Color(0))
	gob.Register(&Failure{})
	gob.Register(time.Time{})
	gob.Register([]any{})
	gob.Register(map[string]any{})
	gob.Register(map[string]int32{})
	gob.Register(Node{})
	gob.Register(Empty{})
	gob.RegisterName("names of things", Names{})
}

type entry struct {
	name    string
	pointer any
}

func of[T any](name string, value T) entry { return entry{name, &value} }

func pointer[T any](value T) *T { return &value }

var (
	nan      = math.NaN()
	negZero  = math.Copysign(0, -1)
	instant  = time.Date(2024, 2, 29, 23, 59, 58, 123456000, time.UTC)
	inKarach = instant.In(time.FixedZone("PKT", 5*3600))
)

var corpus = []entry{
	of("true", true), of("false", false),
	of("int zero", 0), of("int 7", 7), of("int -129", -129), of("int 63", 63), of("int 64", 64),
	of("int min", math.MinInt), of("int max", math.MaxInt),
	of("int8 min", int8(math.MinInt8)), of("int8 max", int8(math.MaxInt8)),
	of("int16 min", int16(math.MinInt16)), of("int16 max", int16(math.MaxInt16)),
	of("int32 min", int32(math.MinInt32)), of("int32 max", int32(math.MaxInt32)),
	of("int64 min", int64(math.MinInt64)), of("int64 max", int64(math.MaxInt64)),
	of("uint zero", uint(0)), of("uint 127", uint(127)), of("uint 128", uint(128)), of("uint 256", uint(256)),
	of("uint8 max", uint8(math.MaxUint8)), of("uint16 max", uint16(math.MaxUint16)),
	of("uint32 max", uint32(math.MaxUint32)), of("uint64 max", uint64(math.MaxUint64)),
	of("uintptr", uintptr(0xdead)),
	of("float zero", 0.0), of("float minus zero", negZero), of("float 17", 17.0), of("float pi", math.Pi),
	of("float nan", nan), of("float inf", math.Inf(1)), of("float -inf", math.Inf(-1)),
	of("float max", math.MaxFloat64), of("float least", math.SmallestNonzeroFloat64),
	of("float32 max", float32(math.MaxFloat32)), of("float32 tenth", float32(0.1)), of("float32 inf", float32(math.Inf(1))),
	of("complex", 1.5-2i), of("complex zero", 0i), of("complex64", complex64(-3+0.25i)), of("complex nan", complex(nan, 1)),
	of("string", "hello"), of("string empty", ""), of("string unicode", "héllo, 世界 🎉"),
	of("string not utf-8", "a\xff\xfe\x00z"), of("string long", strings.Repeat("ab", 500)),
	of("bytes", []byte{0, 1, 254, 255}), of("bytes empty", []byte{}), of("bytes nil", []byte(nil)),
	of("slice", []int{1, -2, 3}), of("slice empty", []int{}), of("slice nil", []int(nil)),
	of("slice nested", [][]string{{"a"}, {}, {"b", ""}}), of("slice bool", []bool{true, false}),
	of("slice float", []float64{0, negZero, nan, 1}), of("slice uint16", []uint16{0, 65535}), of("slice int8", []int8{-128, 127}),
	of("slice bytes", [][]byte{{1}, {}, {2, 3}}), of("slice structs", []Point{{1, 2}, {}, {0, 3}}),
	of("slice pointers", []*Point{{1, 2}, {}}), of("slice empties", []Empty{{}, {}}), of("slice named", Names{"x"}),
	of("array", [3]int{1, 0, -1}), of("array bytes", [4]byte{0, 1, 128, 255}), of("array none", [0]int{}),
	of("array nested", [2][2]string{{"a", "b"}, {"", "d"}}),
	of("map", map[string]int{"a": 1, "b": 0}), of("map empty", map[string]int{}), of("map nil", map[string]int(nil)),
	of("map nested", map[int]map[string][]byte{-1: {"k": {9}}, 2: {}}),
	of("map of bool", map[bool]string{true: "yes", false: ""}),
	of("map of arrays", map[[2]int]string{{1, 2}: "x"}), of("map of structs", map[Key]uint8{{"k", [2]int8{1, -1}}: 9}),
	of("map of interfaces", map[any]any{"s": 1, 2: "i", Color(3): nil}),
	of("struct", Point{22, 33}), of("struct zero", Point{}), of("struct empty", Empty{}), of("struct unnamed", struct{ A, B string }{"a", ""}),
	of("struct widths", Widths{
		true, math.MinInt, -8, -16, -32, -64, math.MaxUint, 8, 16, 32, 64, 99, 0.5, -0.25, 1i, 2 + 2i, "s", []byte("b"),
	}),
	of("struct widths zero", Widths{Float64: negZero}),
	of("struct embedded", Derived{Base{7}, 8, "n", nil, nil}),
	{"struct wide", wide()},
	of("pointers", Pointers{
		Zero: new(int), Set: pointer(5), Deep: pointer(pointer("deep")), Struct: &Point{1, 0}, Array: &[2]int{},
	}),
	of("pointers nil", Pointers{}),
	of("list", Node{1, &Node{2, &Node{0, nil}}}), of("list of 60", list(60)),
	of("tree", Tree{"root", []Tree{{Name: "a"}, {Name: "b", Children: []Tree{{Name: "c"}}}}, map[string]*Tree{"x": {Name: "y"}}}),
	of("mutual", Ping{1, &Pong{"p", []Ping{{2, nil}, {3, &Pong{Name: "q"}}}}}),
	of("nest", Nest{{}, {{}, {{}}}}), of("dirs", Dirs{"a": {"b": {}}, "c": nil}),
	of[any]("interface nil", nil), of[any]("interface string", "abc"), of[any]("interface bool", false),
	of[any]("interface int", -5), of[any]("interface int64", int64(5)), of[any]("interface uint8", uint8(200)),
	of[any]("interface float32", float32(0.5)), of[any]("interface float", 0.5), of[any]("interface complex", 2i),
	of[any]("interface bytes", []byte("xyz")), of[any]("interface strings", []string{"a", "b"}),
	of[any]("interface ints", []int{1, 2}), of[any]("interface bools", []bool{true}),
	of[any]("interface list", []any{1, "two", nil, 3.0, []any{true}}),
	of[any]("interface map", map[string]any{"n": 1, "m": map[string]any{"deep": []string{"x"}, "nil": nil}}),
	of[any]("interface map of int32", map[string]int32{"a": 1}),
	of[any]("interface struct", Point{1, 2}), of[any]("interface pointer", &Circle{2}), of[any]("interface named int", Color(3)),
	of[any]("interface named name", Names{"p", "q"}), of[any]("interface empty struct", Empty{}),
	of[any]("interface error", &Failure{"it broke"}), of[any]("interface time", instant), of[any]("interface recursive", Node{1, &Node{2, nil}}),
	of[any]("interface in interface", Box{"outer", Box{"inner", Point{3, 4}, nil, nil}, nil, nil}),
	of("error", error(&Failure{"as an error"})),
	of("shapes", []Shape{Square{2}, &Circle{1}, nil, Square{3}}),
	of("box", Box{
		"b", Point{1, 2}, []any{Square{1}, Box{"x", Color(1), []any{&Circle{5}, "s"}, map[string]any{"k": Names{"v"}}}, 7},
		map[string]any{"a": []any{Node{1, nil}}, "b": instant},
	}),
	of("box empty", Box{}),
	of("map of interface maps", map[string]any{
		"one": map[string]any{"two": map[string]any{"three": 3, "p": Point{0, 1}}}, "list": []any{map[string]any{}, []any{}},
	}),
	of("time", instant), of("time zone", inKarach), of("time zero", time.Time{}),
	of("time before 1970", time.Date(1883, 11, 18, 12, 3, 58, 0, time.FixedZone("LMT", -4*3600-56*60-2))),
	of("time last", time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)),
	of("times", Times{At: inKarach, Later: &instant}),
	of("gob encoder", *big.NewInt(-1 << 62)), of("binary marshaler", netip.MustParseAddr("192.0.2.1")),
	of("self-encoding in a struct", struct {
		N *big.Int
		A netip.Addr
		S string
	}{big.NewInt(7), netip.MustParseAddr("::1"), "s"}),
}

func list(length int) Node {
	var first *Node
	for n := length; n > 0; n-- {
		first = &Node{n, first}
	}
	return *first
}

// wide points to a struct that has so many fields that the step from one to the next needs more than a byte.
func wide() any {
	var fields []reflect.StructField
	for n := 0; n < 200; n++ {
		fields = append(fields, reflect.StructField{
			Name: "F" + string(rune('A'+n/26)) + string(rune('A'+n%26)), Type: reflect.TypeFor[int](),
		})
	}
	value := reflect.New(reflect.StructOf(fields)).Elem()
	value.Field(1).SetInt(1)
	value.Field(199).SetInt(199)
	return value.Addr().Interface()
}
