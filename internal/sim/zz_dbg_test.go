package sim
import ("testing";"fmt")
func TestDbg(t *testing.T){
 r:=Run(Options{Seed:*seedFlag, Mutation: Mutation(*mutationFlag)})
 s:=r.world.log.truth
 fmt.Println("time", s.Time()-epoch, "now", r.world.now, "skew")
 for _,m:=range r.world.members{fmt.Println(m.id,m.skew, m.wall()-epoch, m.snap.Index())}
 for n:=range s.Nodes(){fmt.Println("node",n.ID,n.State,n.Spec.Availability,n.Spec.Labels,n.Blocks)}
 for v:=range s.Services(){fmt.Println("svc",v.ID,v.Template,v.Update, string(v.Current().Spec.Raw))}
 for x:=range s.AllTasks(){fmt.Println(short(x.ID),"slot",x.Slot,"tpl",x.Template,"node",x.Node,x.State,"→",x.Desired,"startAt",x.StartAt-epoch,"created",x.CreatedAt-epoch,"at",x.StatusAt-epoch,"run",x.RunningSince, "restarts", len(x.Restarts), x.Err)}
 if r.Failure!=nil{fmt.Println(r.Failure.Law)}
}
